"""Where runs are kept: one contract, an in-memory store, and one SQL store with a dialect per database."""
