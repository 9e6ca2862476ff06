"""Which model lives on which device, who goes first, and what memory really does: placement, eviction, order, learning, health."""
