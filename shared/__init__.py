"""Networks, losses, transforms, handlers and explanations shared by the bundles; import sub-packages as needed."""
