"""Connections to databases. The one place that imports their drivers, and knows their errors by name.

    with connections.transaction() as tx:      one transaction: committed at the end, rolled back on an error
        rows = tx.fetch(statement, parameters)
    with connections.read() as tx:             single statements, each for itself

A connection that had an error, or whose database did not answer within the time for one operation, is closed and
never used again. Errors leave as StoreUnavailable (again later), SchemaError, or StoreError (again is no use).
"""

from .transaction import Connections, Transaction

__all__ = ["Connections", "Transaction"]
