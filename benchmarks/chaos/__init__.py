"""Real supervisors, a real database, and everything goes wrong; then a judge reads what happened.

schedule   from the seed: which fault strikes whom, and when
scene      the processes, the database and the lines between them
faults     how each fault is done, and undone
records    from the files, tables and logs that are left to a History
..history  what the judge reads and says
..judge    the rules
..causes   why a run was executed again, and how soon
"""
