"""Does a query find its own item? Recall at k."""
