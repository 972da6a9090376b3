"""Scripts that measure. Ratios within one run count as results; absolute figures drift with machine and day."""
