"""The registered methods of retrieval, one file a group."""
