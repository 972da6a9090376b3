"""When: the delay before a retry. Recurring schedules come to this room later."""
