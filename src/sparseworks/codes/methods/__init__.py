"""The registered methods of codes, one file a group."""
