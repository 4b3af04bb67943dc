"""The only place where configuration becomes objects. It may import every other room but cli."""
