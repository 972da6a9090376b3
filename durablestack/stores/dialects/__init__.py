"""What is different from one database to the next: a value per database, and nothing but words and conversions.

The algorithm is everywhere the same: lock candidates, decide in Python, write by key, in one transaction.
"""

from .dialect import Dialect
from .mysql import MYSQL
from .postgres import POSTGRES
from .sqlite import SQLITE
from .sqlserver import SQLSERVER

DIALECTS = (POSTGRES, MYSQL, SQLSERVER, SQLITE)

__all__ = ["DIALECTS", "MYSQL", "POSTGRES", "SQLITE", "SQLSERVER", "Dialect"]
