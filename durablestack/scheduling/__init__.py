"""When: cron expressions, intervals and time zones, the slots of a schedule, the delay before a retry."""
