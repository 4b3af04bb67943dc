"""The only place where configuration becomes objects. Everything here may import every other room but the command line."""
