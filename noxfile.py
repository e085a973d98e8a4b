"""`make compat`: what can't be installed beside the newest of all, and another event loop."""

import sys

import nox

nox.options.default_venv_backend = "venv"

_TEST_TOOLS = ("bpe-openai>=0.1.4,<0.2", "pytest>=8", "pytest-socket>=0.7", "pytest-xdist>=3")
# What depends on the versions of datasets and huggingface-hub.
_BY_VERSION = ("tests/test_builders.py", "tests/test_hub.py", "tests/test_release.py")
# What has servers, answers and images come by way of an event loop.
_ON_THE_NETWORK = (
    *("tests/test_client.py", "tests/test_limits.py", "tests/test_faults.py"),
    *("tests/test_money.py", "tests/test_reask.py", "tests/test_servers.py"),
    *("tests/test_generation.py", "tests/test_shipped_images.py", "tests/test_llmock.py"),
    *("tests/test_batch.py", "tests/test_kill.py", "tests/test_stale.py"),
    "tests/backends/test_tgi.py",
)


@nox.session(python=False)
@nox.parametrize(
    ("requirements", "tests"),
    [
        nox.param((".", "datasets==3.6.0"), _BY_VERSION, id="datasets-3.6.0"),
        nox.param((".", "datasets==5.0.1"), _BY_VERSION, id="datasets-5.0.1"),
        nox.param((".", "datasets==5.*"), _BY_VERSION, id="datasets-5"),
        # The client package of TGI needs huggingface-hub<1, as nothing else here does.
        nox.param(
            (".[tgi,llama-cpp]",),
            (
                *_BY_VERSION,
                *("tests/backends/test_tgi.py", "tests/backends/test_conformance.py"),
                *("tests/test_readme.py", "tests/test_doors.py", "tests/test_servers.py"),
                *("-k", "builders or hub or tgi or doors"),
            ),
            id="tgi",
        ),
    ],
)
def compat(session: nox.Session, requirements: tuple[str, ...], tests: tuple[str, ...]) -> None:
    """Install the package with some requirements, check them with pip, and run tests there."""
    folder = f"{session.create_tmp()}/venv"
    python = f"{folder}/bin/python"
    package, *others = requirements
    session.run("python3", "-m", "venv", folder, external=True)
    session.run(
        python, "-m", "pip", "install", "--quiet", "-e", package, *others,
        *_TEST_TOOLS, external=True,
    )  # fmt: skip
    session.run(python, "-m", "pip", "check", external=True)
    session.run(python, "-m", "pytest", "-q", "-n", "2", *tests, external=True)


@nox.session(python=False)
def uvloop(session: nox.Session) -> None:
    """Run the tests of what is sent, fetched and stopped, here, on the event loop that Ray has.

    All of them, or the files that are given: `nox -s uvloop -- tests/test_client.py`.
    """
    files = session.posargs or _ON_THE_NETWORK
    session.run(
        sys.executable, "-m", "pytest", "-q", "-n", "2", "--uvloop", *files, external=True
    )  # fmt: skip
