"""Events that user code may listen to: their table, their dialects, and how a run calls them."""
