"""Finding the jobs of an application, and one clear sentence for each way in which it cannot be found."""

import sys
from collections.abc import Callable

import pytest

from durablestack.errors import TargetError
from durablestack.jobs import import_targets, jobs_in

Application = Callable[[dict[str, str]], None]

ONE_JOB = """
from durablestack import durable_job

@durable_job
def {name}() -> None: ...
"""


def found(*targets: str) -> set[str]:
    return {job.__name__ for job in jobs_in(import_targets(targets))}


def test_the_jobs_of_a_module_are_those_that_are_decorated(application: Application) -> None:
    application(
        {
            "shop.py": """
            from durablestack import durable_job

            @durable_job
            def send_email() -> None: ...

            @durable_job
            class Bill:
                def execute(self) -> None: ...

            class Later(Bill): ...
            def helper() -> None: ...
            bills = [Bill()]
            """
        }
    )
    assert found("shop") == {"send_email", "Bill"}


def test_a_package_is_searched_to_the_bottom_but_its_program_is_not_started(application: Application) -> None:
    program = "raise SystemExit('a program was started')\n"
    application(
        {
            "shop/__init__.py": "",
            "shop/__main__.py": program,
            "shop/mail.py": ONE_JOB.format(name="send"),
            "shop/_private.py": ONE_JOB.format(name="hidden"),
            "shop/bills/__init__.py": ONE_JOB.format(name="bill"),
            "shop/bills/__main__.py": program,
            "shop/bills/late/__init__.py": "",
            "shop/bills/late/dunning.py": ONE_JOB.format(name="dun"),
        }
    )
    assert found("shop") == {"send", "hidden", "bill", "dun"}
    assert found("shop.bills") == {"bill", "dun"}
    assert found("shop.mail") == {"send"}


def test_a_program_that_is_named_is_imported(application: Application) -> None:
    application({"shop/__init__.py": "", "shop/__main__.py": ONE_JOB.format(name="send")})
    assert found("shop.__main__") == {"send"}


def test_several_targets_are_one_application(application: Application) -> None:
    application(
        {
            "mail.py": ONE_JOB.format(name="send"),
            "bills/__init__.py": ONE_JOB.format(name="bill"),
        }
    )
    assert found("mail", "bills", "mail") == {"send", "bill"}


def test_a_job_that_several_modules_import_counts_once(application: Application) -> None:
    application(
        {
            "shop/__init__.py": "from shop.mail import send\nalso = send\n",
            "shop/mail.py": ONE_JOB.format(name="send"),
            "shop/bills.py": "from shop.mail import send as send_bill\n",
        }
    )
    assert len(jobs_in(import_targets(["shop"]))) == 1


def test_a_module_is_imported_once_however_often_it_is_named(application: Application) -> None:
    application({"shop/__init__.py": "loads = []\n", "shop/mail.py": "import shop\nshop.loads.append(1)\n"})
    import_targets(["shop", "shop.mail"])
    import_targets(["shop"])
    assert sys.modules["shop"].loads == [1]


def test_strange_things_in_a_module_are_left_alone(application: Application) -> None:
    """Lazy proxies, such as those of web frameworks, raise when they are touched outside of a request."""
    application(
        {
            "shop.py": ONE_JOB.format(name="send")
            + """
class Proxy:
    __slots__ = ()

    def __getattribute__(self, name):
        raise RuntimeError("working outside of a request")

    def __eq__(self, other):
        raise RuntimeError("working outside of a request")

request = Proxy()
"""
        }
    )
    assert found("shop") == {"send"}


@pytest.mark.parametrize(
    ("files", "target", "sentence"),
    [
        ({}, "nowhere", "module 'nowhere' cannot be found: there is no 'nowhere' in the current folder"),
        ({"shop/__init__.py": ""}, "shop.mail", "module 'shop.mail' cannot be found: there is no 'shop.mail'"),
        ({}, "nowhere.mail", "module 'nowhere.mail' cannot be found: there is no 'nowhere'"),
        ({"shop.py": ""}, "shop.mail", "module 'shop.mail' cannot be found"),
        (
            {"shop.py": "import missing_thing\n"},
            "shop",
            "cannot be imported: it needs 'missing_thing', which is missing",
        ),
        ({"shop.py": "x = 1\n1 / 0\n"}, "shop", "cannot be imported: ZeroDivisionError: division by zero ("),
        ({"shop.py": "def f():\n  raise KeyError('k')\nf()\n"}, "shop", "KeyError: 'k' ("),
        ({"shop.py": "def oops(:\n"}, "shop", "cannot be imported: SyntaxError: "),
        ({"shop.py": "import sys\nsys.exit(3)\n"}, "shop", "cannot be imported: it calls sys.exit(3)"),
        ({"shop.py": "raise SystemExit\n"}, "shop", "cannot be imported: it calls sys.exit(None)"),
        ({"shop.py": "from os import nonsense\n"}, "shop", "cannot be imported: ImportError: cannot import name"),
        ({}, "", "'' is not the dotted name of a module or package, such as shop.jobs"),
        ({}, "./shop/jobs.py", "'./shop/jobs.py' is not the dotted name of a module or package, such as shop.jobs"),
        ({"store.py": ""}, "store.py", "module 'store.py' cannot be found; if it is a file, say store"),
        ({}, ".jobs", "'.jobs' is not the dotted name"),
        ({}, "shop..jobs", "'shop..jobs' is not the dotted name"),
        ({}, "two words", "'two words' is not the dotted name"),
    ],
)
def test_what_cannot_be_imported_is_told_in_one_sentence(
    application: Application, files: dict[str, str], target: str, sentence: str
) -> None:
    application(files)
    with pytest.raises(TargetError) as refused:
        import_targets([target])
    assert sentence in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_the_place_of_an_error_is_told_by_file_and_line(application: Application) -> None:
    application({"shop.py": "x = 1\n\nraise RuntimeError('no')\n"})
    with pytest.raises(TargetError, match=r"RuntimeError: no \(.*shop\.py, line 3\)"):
        import_targets(["shop"])


def test_a_broken_module_deep_in_a_package_is_told_by_its_own_name(application: Application) -> None:
    application({"shop/__init__.py": "", "shop/deep/__init__.py": "", "shop/deep/mail.py": "import missing_thing\n"})
    with pytest.raises(TargetError, match=r"module 'shop\.deep\.mail' cannot be imported: it needs 'missing_thing'"):
        import_targets(["shop"])
