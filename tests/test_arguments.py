"""The words of a command line: their order, what is wrong with them, and files of them."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pytest

from mminstruct import backends, cli, export, generation
from mminstruct.builder import InstructBuilder, make
from mminstruct.cli import app, runs
from mminstruct.cli.arguments import USAGE
from mminstruct.cli.console import DONE, INTERRUPTED
from mminstruct.errors import UsageError

ROOT = Path(__file__).parents[1]


def parsed(line: str) -> Any:
    return app.make_parser().parse_args(line.split())


def refused(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that says what is wrong."""
    with pytest.raises(SystemExit) as exit_:
        cli.run(line.split())
    assert exit_.value.code == USAGE
    (said,) = capsys.readouterr().err.splitlines()
    return said


@pytest.mark.parametrize(
    "line",
    [
        "show --types conversation COCO2017 42 --json",
        "show COCO2017 --types conversation 42 --json",
        "show --json COCO2017 42 --types conversation",
        "show 42 --types=conversation --json COCO2017",
        "show --json --types conversation 42 COCO2017",
        "show --types conversation --json -- COCO2017 42",
    ],
)
def test_a_source_and_an_id_stand_anywhere_on_the_line(line: str) -> None:
    args = parsed(line)
    assert (args.sources, args.id, args.types) == (["COCO2017"], "42", ["conversation"])
    assert args.json


@pytest.mark.parametrize(
    ("line", "sources", "types"),
    [
        ("generate --types conversation COCO2017", ["COCO2017"], ["conversation"]),
        ("generate --types a b COCO2017+LVIS ln", ["COCO2017+LVIS", "ln"], ["a", "b"]),
        ("generate COCO2014 --types a,b --limit 3 COCO2017", ["COCO2014", "COCO2017"], ["a", "b"]),
        ("generate SAMPLE --types a --types b", ["SAMPLE"], ["a", "b"]),
        ("generate SAMPLE --types a b c", ["SAMPLE"], ["a", "b", "c"]),
        ("estimate --seed -1 SAMPLE --types a", ["SAMPLE"], ["a"]),
        ("license --model X COCO2017 --json LVIS", ["COCO2017", "LVIS"], None),
    ],
)
def test_a_flag_of_several_values_leaves_sources_alone(
    line: str, sources: list[str], types: list[str] | None
) -> None:
    args = parsed(line)
    assert (args.sources, getattr(args, "types", None)) == (sources, types)


def test_a_release_stands_after_the_flags_of_an_export_too() -> None:
    args = parsed("export --format jsonl --types conversation out")
    assert (args.dataset, args.types, args.format) == ("out", ["conversation"], "jsonl")
    args = parsed("export out --types mine my_other --format jsonl")
    assert (args.dataset, args.types) == ("out", ["mine", "my_other"])


def test_types_of_ones_own_prompt_config_are_known(tmp_path: Path) -> None:
    text = (ROOT / "prompt_configs" / "llava.yaml").read_text(encoding="utf-8")
    own = tmp_path / "own.yaml"
    own.write_text(text.replace("name: llava\n", "name: own\n").replace("conversation", "chat"))
    args = parsed(f"show SAMPLE --types detail_description chat --prompt_config {own}")
    assert (args.types, args.id) == (["detail_description", "chat"], None)
    args = parsed("show SAMPLE --types detail_description chat")
    assert (args.types, args.id) == (["detail_description"], "chat")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "mminstruct: error: the following arguments are required: COMMAND; see"),
        ("genrate SAMPLE", "mminstruct: error: no command genrate (did you mean 'generate'?); see"),
        ("generate", "generate: error: the following arguments are required: SOURCE; see"),
        ("push out", "push: error: the following arguments are required: USER/NAME; see"),
        ("export out", "export: error: the following arguments are required: --format; see"),
        ("export out --format jsnl", "export: error: --format: got 'jsnl' (did you mean 'jsonl'?)"),
        ("export out --format xml", "--format: got 'xml'; choose from: axolotl, jsonl, lavin,"),
        ("completion tcsh", "completion: error: shell: got 'tcsh'; choose from: bash, fish, zsh;"),
        ("generate SAMPLE --limit many", "generate: error: --limit: invalid int value: 'many';"),
        ("generate SAMPLE --limit", "generate: error: --limit: expected one argument; see"),
        ("generate SAMPLE --model --limit 3", "error: --model: expected one argument; see"),
        ("estimate SAMPLE --max-cost $5", "error: --max_cost: invalid float value: '$5'; see"),
        ("show SAMPLE --types conversation no 3", "'no' and '3': can't tell which of them is ID;"),
        ("list sources", "list: error: unrecognized arguments: sources; see mminstruct list"),
        ("list --json", "list: error: unrecognized arguments: --json (--json is a flag of estim"),
    ],
)
def test_what_is_wrong_with_a_line_is_said_in_one(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(line, capsys)


def test_a_wrong_word_is_answered_in_two_rows_of_a_terminal() -> None:
    outer, inner = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "mminstruct", "export", "out", "--format", "jsnl"],
        stderr=inner,
        env={**os.environ, "COLUMNS": "80"},
    )
    assert process.wait(60) == USAGE
    os.close(inner)
    rows = os.read(outer, 10_000).decode().splitlines()
    os.close(outer)
    assert rows == [
        "mminstruct export: error: --format: got 'jsnl' (did you mean 'jsonl'?); see",
        "mminstruct export --help",
    ]


def test_flags_come_from_a_file_and_those_of_the_line_go_before(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "backend: openai\nmodel: '@cf/m'\nbase_url: [http://a, http://b]\ntypes: [a, b]\n"
        "limit: 5\ntemperature: 0.5\ndry-run: true\ncommercial: false\nseed: -1\n"
    )
    args = parsed(f"generate SAMPLE --config {file} --limit 3 --types c")
    assert (args.model_source, args.model, args.limit, args.temperature) == (
        *("openai", "@cf/m", 3, 0.5),
    )
    assert (args.base_url, args.types, args.seed) == (["http://a", "http://b"], ["c"], -1)
    assert (args.dry_run, args.commercial) == (True, None)


@pytest.mark.parametrize(
    ("line", "sources", "types"),
    [
        ("generate", ["COCO2017", "LVIS"], ["a", "b"]),
        ("license", ["COCO2017", "LVIS"], ["a", "b"]),
        ("generate SAMPLE", ["SAMPLE"], ["a", "b"]),
        ("generate --types conversation SAMPLE", ["SAMPLE"], ["conversation"]),
        ("generate --types conversation mine", ["COCO2017", "LVIS"], ["conversation", "mine"]),
        ("generate COCO2071", ["COCO2017", "LVIS", "COCO2071"], ["a", "b"]),  # refused later
    ],
)
def test_sources_come_from_a_file_unless_the_line_has_some(
    line: str, sources: list[str], types: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("sources: [COCO2017, LVIS]\ntypes: a, b\n")
    args = parsed(f"{line} --config {file}")
    assert (args.sources, args.types) == (sources, types)


def test_an_id_stands_beside_a_source_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("sources: COCO2017\n")
    args = parsed(f"show 42 --config {file}")
    assert (args.sources, args.id) == (["COCO2017"], "42")
    assert parsed(f"show --config {file}").id is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sources: true", "sources: expected a text, a number or a list of them, got True"),
        ("modle: x", "unknown key 'modle' (did you mean 'model'?)"),
        ("config: other.yaml", "unknown key 'config'"),
        ("dry_run: 1", "dry_run: expected true or false, got 1"),
        ("limit: true", "limit: expected a text, a number or a list of them, got True"),
        ("- limit", "expected a mapping at the top"),
    ],
)
def test_a_file_of_flags_is_held_to_what_there_is(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert cli.run(["generate", "SAMPLE", "--config", str(file)]) == USAGE
    assert f"run.yaml: {said}" in capsys.readouterr().err


def test_words_come_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "all").write_text("generate --types conversation  # as ever\nSAMPLE\n")
    (tmp_path / "more").write_text(f"--model 'my model' @{tmp_path}/last")
    (tmp_path / "last").write_text("--limit 3")
    args = parsed(f"@{tmp_path}/all --splits train @{tmp_path}/more")
    assert (args.sources, args.types, args.splits) == (["SAMPLE"], ["conversation"], ["train"])
    assert (args.model, args.limit) == ("my model", 3)
    assert parsed("generate SAMPLE --model @cf/m").model == "@cf/m"
    (tmp_path / "last").write_text(f"@{tmp_path}/last")
    for file, said in (("last", "got it again"), ("none", "No such file or directory")):
        assert cli.run(["generate", f"@{tmp_path}/{file}"]) == USAGE
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("path", ["out.csv", "out.PARQUET", "deep/out.zip"])
def test_a_folder_never_has_the_name_of_a_file(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for more in ([], ["--output_format", "dataset"]):
        code = cli.run(["generate", "SAMPLE", "--dry_run", "--output_path", path, *more])
        said = capsys.readouterr().err
        assert (code, list(tmp_path.iterdir())) == (USAGE, [])
        assert f"output path {path}: the format dataset is a folder, got the name of a " in said
        assert "a file with the format jsonl, llava-instruct, sharegpt, messages, axolotl" in said
    for folder in ("llava-v1.5", "run.2026-01-31"):
        assert generation.choose_output(folder) == ("dataset", Path(folder))
    assert generation.choose_output("x.txt", "jsonl") == ("jsonl", Path("x.txt"))
    with pytest.raises(UsageError, match="the format parquet is a folder, got the name of a"):
        export.check_output(Path(path), "parquet")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([], "NAME"),
        (["--model", "llama3:8b"], "llama3:8b"),
        (["--model", "my model"], "'my model'"),
    ],
)
@pytest.mark.parametrize(
    ("name", "url"),
    [
        *(("vllm", "http://localhost:8000/v1"), ("Ollama", "http://localhost:11434/v1")),
        *(("lm-studio", "http://localhost:1234/v1"), ("sglang", "http://localhost:30000/v1")),
        *(("azure", "https://RESOURCE.openai.azure.com/openai/v1"),),
        *(("groq", "https://api.groq.com/openai/v1"), ("together", "https://api.together.xyz/v1")),
    ],
)
def test_a_server_by_its_name_is_answered_with_the_flags_to_type(
    name: str, url: str, given: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["generate", "SAMPLE", "--model_source", name, *given]) == USAGE
    said = f"--model_source openai --openai_base_url {url} --model {named}\n"
    assert capsys.readouterr().err.endswith(f"{name!r}: it speaks OpenAI's API; give {said}")


def test_no_model_source_has_the_name_of_a_server() -> None:
    assert backends.SERVERS.keys() & set(backends.names()) == {"openai"}


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("gpt-4o", ""),
        ("claude-sonnet-4-5", ""),
        ("gpt-oss-120b", "or openai-mirror/gpt-oss-120b or unsloth/gpt-oss-120b?"),
        ("llama-3.3-70b-versatile", "--openai_base_url https://api.groq.com/openai/v1"),
        (
            "Qwen2.5-72B",
            "mean Qwen/Qwen2.5-72B or unsloth/Qwen2.5-72B or Qwen/Qwen2.5-72B-Instruct?",
        ),
        ("qwen/qwen3-8b", ""),
        ("Qwen/Qwen3-8B", ""),
        ("somebody/something", ""),
    ],
)
def test_a_model_whose_terms_are_not_known_by_that_name_is_asked_about(
    model: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["license", "--model", model, "SAMPLE"]) == DONE
    error = " ".join(capsys.readouterr().err.split())
    assert error.endswith(said)
    assert bool(error) == bool(said)


@pytest.mark.parametrize(
    "line",
    [
        "license SAMPLE --model nope/deep/x.gguf",
        "license SAMPLE --model X --licenses nope/deep/own.yaml",
        "generate SAMPLE --model nope/deep/x.gguf",
        "generate SAMPLE --dry_run --prompt_config nope/deep/own.yaml",
        "generate SAMPLE --config nope/deep/run.yaml",
        "export nope/deep/out --format jsonl",
        "push nope/deep/out me/it",
    ],
)
def test_the_folder_of_a_path_that_is_not_there_is_named(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    for start in ("", "here/"):
        assert cli.run(line.replace("nope", f"{start}nope").split()) == USAGE
        said = " ".join(capsys.readouterr().err.split())
        assert f"(there is no folder {start}nope)" in said


def test_where_an_output_cannot_be_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes").touch()
    line = "generate SAMPLE --dry_run --output_path notes/mine/out"
    assert cli.run(line.split()) == USAGE
    assert "output path notes/mine/out: Not a directory in notes\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "generate SAMPLE --dry_run --output_path",
        "generate SAMPLE --dry_run --shard 0/2 --output_path",
        "merge out.parts/0-of-1",
        "export out --format jsonl --output_path",
        "export out --format webdataset --images path --image_folder . --output_path",
        "view out --output_path",
    ],
)
def test_an_address_is_no_folder_of_that_name(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "out.html" if line.startswith("view") else "out"
    assert cli.run([*line.split(), f"s3://bucket/{name}"]) == USAGE
    assert "output path s3://bucket/out" in (said := capsys.readouterr().err)
    assert "expected one on this machine, got an address; write to a folder or file" in said
    assert list(tmp_path.iterdir()) == []


def test_home_is_known_where_no_shell_writes_it_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("run.yaml").write_text("{output_path: ~/out, dry_run: true, limit: 1}")
    assert cli.run(["generate", "SAMPLE", "--config", "run.yaml"]) == DONE
    Path("form.yaml").write_text("{output_path: ~/rows.jsonl, format: jsonl}")
    assert cli.run(["export", "home/out", "--config", "form.yaml"]) == DONE
    assert {f.name for f in Path("home").glob("*")} >= {"out", "rows.jsonl"}
    assert not Path("~").exists()


def builder(tmp_path: Path, **arguments: Any) -> InstructBuilder:
    made = make("SAMPLE", "llava", "sample_llava_names")
    return made(config_name="default", cache_dir=str(tmp_path), **arguments)


def test_python_and_the_command_line_have_the_same_names(tmp_path: Path) -> None:
    made = builder(
        tmp_path,
        model_source="fake",
        openai_base_url=None,
        dataset_storage_path=str(tmp_path),
        timeout=7,
    )
    assert (made.config.backend, made.config.data_dir) == ("fake", str(tmp_path))
    assert (made.config.timeout_s, made.config.base_url) == (7, None)
    args = parsed("generate SAMPLE --backend fake --data-dir D --timeout_s 7 --base-url http://h")
    assert (args.model_source, args.dataset_storage_path) == ("fake", "D")
    assert (args.timeout_s, args.base_url) == (7.0, ["http://h"])


def test_two_names_of_one_argument_are_one_too_many(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="model_source: another name of backend; give one of them"):
        builder(tmp_path, model_source="fake", backend="fake")
    with pytest.raises(UsageError, match=r"'modle_source' \(did you mean 'model_source'\?\)"):
        builder(tmp_path, modle_source="fake")


@pytest.mark.parametrize(("source", "code"), [("openai", None), ("tgi", None), ("fake", 2)])
def test_the_address_of_a_server_is_that_of_the_model_source(source: str, code: int | None) -> None:
    args = parsed(f"generate SAMPLE --backend {source} --base_url http://h --base_url http://i")
    if code is None:
        assert runs.read_base_urls(args) == ["http://h", "http://i"]
    else:
        with pytest.raises(UsageError, match="--base_url is for --model_source openai or tgi, got"):
            runs.read_base_urls(args)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_flags_and_sources(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["completion", shell]) == DONE
    script = capsys.readouterr().out
    for word in ("estimate", "model_source", "llava-instruct", "OPENIMAGESV7"):
        assert word in script


def test_bash_completes_a_line() -> None:
    script = subprocess.run(
        [sys.executable, "-c", "from mminstruct.cli import main; main()", "completion", "bash"],
        capture_output=True,
        text=True,
    ).stdout
    ask = "COMP_WORDS=(mminstruct export out --format ms); COMP_CWORD=4; COMP_LINE='';"
    ended = subprocess.run(
        ["bash", "-c", f"{script}\n{ask} _shtab_mminstruct; echo ${{COMPREPLY[@]}}"],
        capture_output=True,
        text=True,
    )
    assert ended.stdout.split() == ["ms-swift"]


@pytest.mark.parametrize(
    "command", [("-c", "from mminstruct.cli import main; main()"), ("-m", "mminstruct")]
)
def test_ctrl_c_while_modules_are_loaded_ends_in_peace(
    command: tuple[str, str], tmp_path: Path
) -> None:
    started = tmp_path / "started"
    (tmp_path / "datasets.py").write_text(  # takes a while to load
        f"import time, pathlib\npathlib.Path({str(started)!r}).touch()\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, *command, "estimate", "SAMPLE"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == (b"", b"")
    assert process.returncode == INTERRUPTED


def test_the_samples_images_go_into_a_dataset_that_shows_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    assert (
        cli.run(["generate", "SAMPLE", "--dry_run", "--limit", "2", "--output_path", "out"]) == DONE
    )
    assert cli.run(["export", "out", "--format", "parquet", "--images", "embed"]) == DONE
    rows = datasets.load_dataset("out-parquet", split="train", cache_dir="hf")
    made = datasets.load_dataset("out", split="train", cache_dir="hf")
    assert rows.features == {**made.features, "image": datasets.Image()}
    assert [(row["id"], row["image"].size) for row in rows] == [
        (id, (640, 480)) for id in made["id"]
    ]
    assert rows.cast_column("image", datasets.Image(decode=False))[0]["image"]["path"] == (
        "sample_000000000001.png"
    )
    again = "export out --format parquet --images embed --max_size 64 --types conversation"
    assert cli.run(again.split()) == DONE  # another content by the same name
    rows = datasets.load_dataset("out-parquet", split="train", cache_dir="hf")
    assert [row["image"].size for row in rows] == [(64, 48)] * 2
    assert len(list((tmp_path / "out-parquet").iterdir())) == 1
    capsys.readouterr()
    assert cli.run(["export", "out", "--format", "jsonl", "--images", "url"]) == USAGE
    assert "no address for its image 6" in capsys.readouterr().err


def test_a_dry_runs_card_says_so_and_its_command_can_be_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = (
        "generate SAMPLE --dry_run --types conversation detail_description --temperature 0.5 "
        "--top_p 0.25 --max_tokens 700 --seed 3 --limit 1 --output_path out"
    )
    assert cli.run(line.split()) == DONE
    card = (tmp_path / "out" / "README.md").read_text()
    assert (
        "\n# Dry run: the mminstruct sample instructions by scripted\n\n**This is a dry run**"
        in card
    )
    assert '"dry_run": true' in (tmp_path / "out" / "provenance.json").read_text()
    command = card.partition("```bash\n")[2].partition("\n```")[0]
    assert len(command.splitlines()) == 2
    assert all(len(row) <= 88 for row in command.splitlines())
    words = subprocess.run(
        ["bash", "-c", f"mminstruct() {{ printf '%s\\n' \"$@\"; }}; {command}"],
        capture_output=True,
        text=True,
    ).stdout.split()
    again, once = vars(parsed(" ".join(words))), vars(parsed(line))
    assert {**again, "parser": None} == {**once, "parser": None}
