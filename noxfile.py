"""`make compat`: the builders under the lines of `datasets` that are supported."""

import nox

nox.options.default_venv_backend = "venv"


@nox.session(python=False)
@nox.parametrize("datasets", ["3.6.0", "5.0.1", "5.*"])
def compat(session: nox.Session, datasets: str) -> None:
    """Install the package beside one version of datasets and run tests/test_builders.py there."""
    folder = session.create_tmp()
    python = f"{folder}/{datasets.replace('*', 'x')}/bin/python"
    session.run("python3", "-m", "venv", f"{folder}/{datasets.replace('*', 'x')}", external=True)
    session.run(
        python, "-m", "pip", "install", "--quiet", "-e", ".", f"datasets=={datasets}",
        "pytest", "pytest-socket", "aiohttp", external=True,
    )  # fmt: skip
    session.run(python, "-m", "pytest", "-q", "tests/test_builders.py", external=True)
