"""Networks of IRCL."""
