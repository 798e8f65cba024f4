"""From folders of images and a table of labels to a datalist; imports no torch, no MONAI."""
