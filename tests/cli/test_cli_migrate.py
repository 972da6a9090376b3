"""durablestack migrate"""

from durablestack import DurableStack


def test_migrate_tells_what_it_applied_and_then_that_all_is_there(console, folder):
    first = console("migrate", "--database-url", "sqlite:///new.db")
    assert (first.code, first.out, first.err) == (0, "applied version 1, 2, 3\n", "")
    second = console("migrate", "--database-url", "sqlite:///new.db")
    assert second.code == 0
    assert "nothing to do" in second.out


def test_migrate_works_on_postgresql(console, on_postgres: DurableStack):
    assert console("migrate").out == "applied version 1, 2, 3\n"
    assert "nothing to do" in console("migrate").out
    on_postgres.store.verify_schema()


def test_migrate_into_a_folder_that_is_not_there_is_exit_code_3(console):
    ended = console("migrate", "--database-url", "sqlite:///no/such/folder/new.db")
    assert ended.code == 3
    assert "no/such/folder" in ended.sentence
