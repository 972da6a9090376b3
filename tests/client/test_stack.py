"""DurableStack: an application by its modules, by its attribute, or by its jobs alone."""

from collections.abc import Callable
from typing import Any

import pytest
import queue_jobs

from durablestack import DurableStack, DurableStackOptions, JobDefinitionError, OptionsError, TargetError
from durablestack.stores.memory import InMemoryStore

Application = Callable[[dict[str, str]], None]

JOB = """
from durablestack import DurableStack, DurableStackOptions, durable_job

@durable_job
def send() -> None: ...
"""
STACK = JOB + "stack = DurableStack(__name__, options=DurableStackOptions(batch_size=7))\n"


def test_a_module_is_an_application(application: Application) -> None:
    application({"shop.py": JOB})
    stack = DurableStack.load(["shop"])
    assert stack.jobs.names == ("send",)
    assert stack.targets == ("shop",)
    assert isinstance(stack.store, InMemoryStore)


def test_a_module_that_holds_a_durable_stack_lends_it_its_options(application: Application) -> None:
    application({"shop.py": STACK})
    for target in ("shop", "shop:stack"):
        stack = DurableStack.load([target])
        assert stack.options.batch_size == 7
        assert stack.jobs.names == ("send",)
        assert stack.targets == ("shop",)


def test_a_stack_deep_in_a_package_is_found(application: Application) -> None:
    application({"shop/__init__.py": "", "shop/app.py": STACK, "shop/bills.py": JOB.replace("send", "bill")})
    stack = DurableStack.load(["shop"])
    assert stack.options.batch_size == 7
    assert stack.jobs.names == ("bill", "send")


def test_one_stack_that_several_modules_import_is_one(application: Application) -> None:
    application({"shop/__init__.py": "", "shop/app.py": STACK, "shop/web.py": "from shop.app import stack\n"})
    assert DurableStack.load(["shop"]).options.batch_size == 7


def test_of_two_stacks_one_has_to_be_named(application: Application) -> None:
    two = STACK + "other = DurableStack(__name__, options=DurableStackOptions(batch_size=8))\n"
    application({"shop.py": two})
    with pytest.raises(TargetError, match="shop holds 2 DurableStacks; name the one you mean, as module:attribute"):
        DurableStack.load(["shop"])
    assert DurableStack.load(["shop:other"]).options.batch_size == 8
    assert DurableStack.load(["shop:other", "shop"]).options.batch_size == 8
    with pytest.raises(TargetError, match="holds 2 DurableStacks"):
        DurableStack.load(["shop:other", "shop:stack"])


@pytest.mark.parametrize("attribute", ["nothing", "send", "DurableStack", ""])
def test_an_attribute_that_is_no_stack_is_refused(application: Application, attribute: str) -> None:
    application({"shop.py": STACK})
    with pytest.raises(
        TargetError, match=f"'shop:{attribute}': shop has no DurableStack called '{attribute}'; it has stack"
    ):
        DurableStack.load([f"shop:{attribute}"])
    with pytest.raises(TargetError):
        DurableStack.load_application([f"shop:{attribute}"])


def test_changes_go_before_the_options_of_the_application(application: Application) -> None:
    application({"shop.py": STACK})
    stack = DurableStack.load(["shop"], max_concurrent_runs=3)
    assert (stack.options.batch_size, stack.options.max_concurrent_runs) == (7, 3)
    assert DurableStack.load(["shop"], batch_size=9).options.batch_size == 9
    with pytest.raises(OptionsError):
        DurableStack.load(["shop"], batch_sizes=9)


def test_changes_reach_an_application_without_a_stack(application: Application) -> None:
    application({"shop.py": JOB})
    assert DurableStack.load(["shop"], batch_size=9).options.batch_size == 9


def test_the_jobs_of_all_targets_belong_to_the_application(application: Application) -> None:
    application({"shop.py": STACK, "bills.py": JOB.replace("send", "bill")})
    assert DurableStack.load(["shop:stack", "bills"]).jobs.names == ("bill", "send")
    assert DurableStack.load_application(["shop:stack", "bills"]).jobs.names == ("bill", "send")


def test_jobs_that_were_given_by_hand_are_the_application_too(application: Application) -> None:
    application(
        {
            "shop.py": """
            from durablestack import DurableStack, DurableStackOptions
            def bill(args: int) -> None: ...
            stack = DurableStack(options=DurableStackOptions(), jobs=[bill])
            """
        }
    )
    assert DurableStack.load(["shop"]).jobs.names == ("bill",)
    assert DurableStack.load_application(["shop"]).jobs.names == ("bill",)


def test_jobs_alone_need_no_options_that_can_be_meant(
    application: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    application({"shop.py": JOB})
    monkeypatch.setenv("DURABLESTACK__DATABASE_URL", "nonsense://")
    assert DurableStack.load_application(["shop"]).jobs.names == ("send",)
    with pytest.raises(OptionsError):
        DurableStack.load(["shop"])


def test_what_cannot_be_imported_is_a_target_error(application: Application) -> None:
    application({"shop.py": "1 / 0\n"})
    for target in ("shop", "nowhere", "shop:stack", ":stack", ""):
        with pytest.raises(TargetError):
            DurableStack.load([target])


def test_lazy_things_in_a_module_are_not_touched(application: Application) -> None:
    lazy = """
class Lazy:
    def __getattribute__(self, name):
        raise RuntimeError("touched")

request = Lazy()
"""
    application({"shop.py": STACK + lazy})
    assert DurableStack.load(["shop"]).jobs.names == ("send",)


# --- made by hand


def test_jobs_are_looked_for_when_first_asked_for(application: Application) -> None:
    """So that a module may make its stack first, and declare its jobs below."""
    first = "from durablestack import DurableStack\nstack = DurableStack(__name__, batch_size=7)\n"
    application({"shop.py": first + JOB})
    assert DurableStack.load(["shop"]).jobs.names == ("send",)


def test_jobs_given_and_jobs_found_are_one_registry() -> None:
    stack = DurableStack(
        "queue_jobs", "queue_jobs", options=DurableStackOptions(), jobs=[queue_jobs.undeclared, queue_jobs.Bill]
    )
    assert stack.targets == ("queue_jobs",)
    assert stack.jobs.names == ("Bill", "send-email", "tidy", "undeclared")


def test_a_job_given_under_the_name_of_one_that_is_found_is_refused() -> None:
    def tidy() -> None: ...

    stack = DurableStack("queue_jobs", options=DurableStackOptions(), jobs=[tidy])
    with pytest.raises(JobDefinitionError, match="two jobs are named 'tidy'"):
        _ = stack.jobs


def test_discovery_can_be_switched_off() -> None:
    options: Any = {"job_registration": {"auto_discover_jobs_from_assembly": False}}
    stack = DurableStack("queue_jobs", options=DurableStackOptions(**options), jobs=[queue_jobs.tidy])
    assert stack.jobs.names == ("tidy",)


def test_a_stack_that_nobody_used_opens_and_closes_no_store() -> None:
    with DurableStack(options=DurableStackOptions()) as stack:
        assert "store" not in vars(stack)
    assert "store" not in vars(stack)


def test_the_store_in_memory_is_the_same_for_everyone_in_the_process() -> None:
    stack = DurableStack(options=DurableStackOptions())
    assert stack.open_store(connections_max=3) is stack.store


def test_enqueueing_into_the_memory_of_a_process_that_runs_nothing_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def job() -> None: ...

    stack = DurableStack(options=DurableStackOptions(), jobs=[job])
    stack.client.enqueue(job)
    stack.client.enqueue(job)
    assert [record.getMessage()[:24] for record in caplog.records] == ["what was enqueued is kep"]
    stack.add_waker(lambda: None)
    caplog.clear()
    DurableStack(options=DurableStackOptions(), jobs=[job]).add_waker(lambda: None)
    stack.client.enqueue(job)
    assert caplog.records == []
