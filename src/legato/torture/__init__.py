"""What ``legato torture`` does: a server on this machine, an honest load on it, and whatever can be done to it."""
