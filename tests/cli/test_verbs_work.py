"""Every verb of the command line does its work: output, JSON, exit code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from opticus.cli.commands import COMMANDS
from opticus.cli.main import main


def test_the_overview_names_every_verb(cli: Any) -> None:
    for words in ((), ("--help",), ("-h",), ("help",)):
        answer = cli(*words)
        assert answer.code == 0
        assert all(f"  {name}" in answer.out for name in COMMANDS)
        assert "exit codes: 0 ok, 1 findings, 2 usage, 3 failure" in answer.out


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verb_has_help(cli: Any, verb: str) -> None:
    answer = cli(verb, "--help")
    assert answer.code == 0
    assert answer.out.startswith(f"usage: opticus {verb}") and "--json" in answer.out


def test_the_settings_that_help_names_exist(cli: Any) -> None:
    from opticus.cli.main import SETTINGS
    from opticus.verbs.teach import SETTINGS as TEACHING
    from opticus.verbs.train import OPTIM_FIELDS, RECIPE_FIELDS

    assert set(SETTINGS) - {"weights"} <= OPTIM_FIELDS | RECIPE_FIELDS | set(TEACHING)
    assert all(name in cli("train", "--help").out for name in SETTINGS)


def test_version(cli: Any) -> None:
    import opticus

    assert cli("--version").out == f"opticus {opticus.__version__}\n"


def test_train_writes_a_run_folder(trained: Path) -> None:
    for name in ("args.json", "env.json", "results.csv", "report.html", "passport.json", "weights/last.safetensors", "state"):
        assert (trained / name).exists(), name
    assert not list(trained.rglob("*.part"))
    assert json.loads((trained / "args.json").read_text())["model"] == "lenet/5"


def test_train_in_json_and_resumed(cli: Any) -> None:
    answer = cli("train", "lenet/5", "data=digits", "steps=2", "--evaluate-every", "0", "--no-test", "--quiet", "out=r", "--json")
    assert answer.code == 0 and answer.err == ""
    assert json.loads(answer.out) == {"out": "r", "values": {}}
    answer = cli("train", "lenet/5", "data=digits", "steps=2", "out=r", "quiet=true")
    assert answer.code == 3 and "r: holds another run; use resume=True" in answer.sentence
    answer = cli("train", "resume=r", "steps=4", "quiet=true", "--no-test", "--json")
    assert answer.code == 0 and json.loads(answer.out)["out"] == "r"


def test_settings_of_the_model_survive_a_resume(cli: Any) -> None:
    common = ("evaluate_every=0", "test=false", "quiet=true")
    assert cli("train", "resnet/tiny", "data=digits", "steps=1", "batch=4", "width=8", "out=r", *common).code == 0
    answer = cli("train", "resume=r", "steps=2", *common)
    assert answer.code == 0, answer.err
    import opticus

    assert opticus.load("r").config.width == 8


def test_val_gives_figures_and_their_protocol(cli: Any, trained: Path) -> None:
    answer = cli("val", trained, "data=digits", "quiet=true", "limit=50")
    assert answer.code == 0 and answer.out.startswith("top1 0.") and answer.err == ""
    answer = cli("val", trained, "data=digits", "--limit=50", "--quiet", "--json", "out=kept")
    found = json.loads(answer.out)
    assert 0.3 < found["values"]["top1"] <= 1 and found["protocol"]["limit"] == 50
    assert json.loads(Path("kept/passport.json").read_text())


def test_val_reads_a_weights_file(cli: Any, trained: Path) -> None:
    file = trained / "weights" / "last.safetensors"
    assert cli("val", "lenet/5", f"weights={file}", "data=digits", "limit=8").code == 0
    answer = cli("val", "resnet/18", f"weights={file}", "data=digits")
    assert answer.code == 3 and "holds lenet/5, not resnet/18" in answer.sentence


def test_predict_tells_and_draws(cli: Any, trained: Path, street: Path) -> None:
    answer = cli("predict", trained, street, "out=found")
    assert answer.code == 0 and answer.out.startswith("street.png: ") and answer.err == "1 picture in found\n"
    assert Image.open("found/street.png").size[0] >= 80
    answer = cli("predict", trained, street, "--json", "--no-save", "limit=3")
    record = json.loads(answer.out)
    assert record["id"] == "street.png" and len(record["classes"]) == 3 and answer.err == ""
    assert len(json.loads(cli("predict", trained, street, "--json", "save=0", "labels=3,5").out)["classes"]) == 2


def test_pictures_of_one_stem_get_names_of_their_own(cli: Any, trained: Path) -> None:
    Path("in/a").mkdir(parents=True)
    for name in ("in/x.png", "in/x.jpg", "in/a/x.png"):
        Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(name)
    assert cli("predict", trained, "in", "out=found").code == 0
    assert len(list(Path("found").iterdir())) == 3


def test_predict_never_overwrites_its_input(cli: Any, trained: Path) -> None:
    Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save("x.png")
    before = Path("x.png").read_bytes()
    for source in (".", "x.png"):
        answer = cli("predict", trained, source, "out=.")
        assert answer.code == 2 and "is where the pictures themselves are" in answer.sentence
    assert Path("x.png").read_bytes() == before


def test_models(cli: Any) -> None:
    answer = cli("models")
    assert answer.code == 0 and {"lenet/5", "resnet/50", "vit/b16", "detr/r50", "centernet/tiny"} <= set(answer.out.split())
    rows = json.loads(cli("models", "*detr*", "--json").out)
    assert rows and all(row["name"].startswith("detr/") and row["task"] == "detect" for row in rows)
    assert json.loads(cli("models", "etr/r5", "--json").out)
    assert all(row["task"] == "classify" for row in json.loads(cli("models", "--task", "classify", "--json").out))
    answer = cli("models", "nothing-like-that")
    assert answer.code == 1 and answer.out == "no model matches 'nothing-like-that'\n"


def test_info(cli: Any, trained: Path) -> None:
    assert "60,850" in cli("info", "lenet/5").out
    found = json.loads(cli("info", trained, "--json").out)
    assert found["name"] == "lenet/5" and found["parameters"] == 60850 and found["labels"] == 10


def test_identify(cli: Any, trained: Path) -> None:
    file = trained / "weights" / "last.safetensors"
    answer = cli("identify", file)
    assert answer.code == 0 and "lenet/5 (opticus)" in answer.out
    assert json.loads(cli("identify", file, "--json").out)["name"] == "lenet/5"
    save_file({"strange.weight": torch.ones(3)}, "strange.safetensors")
    answer = cli("identify", "strange.safetensors", "--json")
    assert answer.code == 1 and json.loads(answer.out)["name"] is None


def test_doctor(cli: Any, coco: Path) -> None:
    answer = cli("doctor", coco, "--json")
    found = json.loads(answer.out)
    assert answer.code == int(any(f["severity"] != "info" for f in found["findings"])) and found["errors"] == 0
    assert set(found["splits"]) == {"train", "val", "test"}
    assert str(coco) in cli("doctor", coco).out


def test_doctor_finds_and_lists_bad_records(cli: Any, coco: Path) -> None:
    file = coco / "annotations" / "instances_train.json"
    tree = json.loads(file.read_text())
    tree["annotations"][0]["bbox"][2] = -5
    shutil.copytree(coco, "bad")
    Path("bad/annotations/instances_train.json").write_text(json.dumps(tree))
    answer = cli("doctor", "bad", "quarantine=q.csv", "--json")
    assert answer.code == 1 and json.loads(answer.out)["errors"] >= 1
    assert len(Path("q.csv").read_text().splitlines()) >= 2
    common = ("centernet/tiny", "data=bad", "steps=1", "batch=2", "evaluate_every=0", "test=false", "quiet=true")
    answer = cli("train", *common, "out=no")
    assert answer.code == 3 and not Path("no").exists()
    assert cli("train", *common, "out=yes", "quarantine=q.csv").code == 0
    assert cli("train", *common, "out=also", "on_bad=quarantine").code == 0


def test_report_is_written_again(cli: Any, trained: Path) -> None:
    before = (trained / "passport.json").read_text()
    (trained / "report.html").unlink()
    answer = cli("report", trained, "--json")
    assert answer.code == 0 and json.loads(answer.out) == {"report": str(trained / "report.html")}
    assert (trained / "report.html").stat().st_size > 10_000
    numbers = [
        {k: v["value"] for k, v in json.loads(t)["numbers"].items()} for t in (before, (trained / "passport.json").read_text())
    ]
    assert numbers[0] == pytest.approx(numbers[1])


def test_compare(cli: Any, trained: Path) -> None:
    answer = cli("compare", trained, trained)
    assert answer.code == 0 and "difference +0.0000" in answer.out
    assert {row["name"] for row in json.loads(cli("compare", trained, trained, "--json").out)} >= {"top1", "top5"}


def test_unlike_protocols_are_not_compared(cli: Any, trained: Path) -> None:
    assert cli("val", trained, "data=digits", "limit=20", "quiet=true", "out=part").code == 0
    answer = cli("compare", trained, "part")
    assert answer.code == 3 and ("limit" in answer.sentence or "samples" in answer.sentence)


def test_prove(cli: Any) -> None:
    answer = cli("prove", "iou")
    assert answer.code == 0 and "largest error" in answer.out and answer.out.rstrip().endswith("holds")
    assert json.loads(cli("prove", "iou", "--json").out)[0]["holds"] is True


def test_a_failed_proof_is_a_finding(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from opticus.verbs import prove

    monkeypatch.setitem(prove.CLAIMS, "iou", prove.Claim("1", 0.0, lambda rng, hard: 1.0))
    answer = cli("prove", "iou")
    assert answer.code == 1 and "DOES NOT HOLD" in answer.out


def test_verify_reports_what_it_found(cli: Any, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from opticus.verbs import verify

    def found(different: tuple[str, ...]) -> Any:
        return lambda run, steps: verify.Resumption(run, steps, (3,), 7, different)

    monkeypatch.setattr(verify, "verify_resume", found(()))
    assert cli("verify", "resume", trained, "--json").code == 0
    monkeypatch.setattr(verify, "verify_resume", found(("/objective/x",)))
    answer = cli("verify", "resume", trained, "--json")
    assert answer.code == 1 and json.loads(answer.out)["different"] == ["/objective/x"]


@pytest.mark.parametrize(("name", "form"), [("digits", "folder"), ("digits", "mnist"), ("digits", "cifar-python"), ("scenes", "yolo"),
                                        ("scenes", "voc")])  # fmt: skip
def test_export_data(cli: Any, name: str, form: str) -> None:
    import opticus

    answer = cli("export-data", name, form, "data", "limit=2", "--json")
    assert answer.code == 0 and json.loads(answer.out) == {"folder": "data"}
    assert len(opticus.open_data("data", "train", on_bad="keep")) == 2


def test_demo_says_where_to_look(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from opticus.recipes import demo

    values = dict.fromkeys(demo.SHOWN, 0.5)

    def stub(out: Path, *, steps: int, baselines: bool) -> demo.Shown:
        return demo.Shown(out, (demo.Row(f"{steps} {baselines}", values, 1.0, None),))

    monkeypatch.setattr(demo, "demo", stub)
    answer = cli("demo", "out=d", "steps=7", "--no-baselines")
    assert answer.code == 0 and "7 False" in answer.out
    assert [line.split(":")[0] for line in answer.out.splitlines()[-2:]] == ["look", "next"]
    assert json.loads(cli("demo", "out=d", "--json").out)["out"] == "d"


def test_the_programme_itself(tmp_path: Path) -> None:
    """Through a process: exit codes reach the shell, JSON is alone on stdout, a closed pipe is no error."""

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-m", "opticus", *words], capture_output=True, text=True, cwd=tmp_path, env=environment
        )

    done = run("models", "lenet*", "--json")
    assert done.returncode == 0 and json.loads(done.stdout)[0]["name"] == "lenet/5" and done.stderr == ""
    done = run("trian")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "opticus: unknown verb 'trian'; did you mean 'train'?\n")
    done = run("doctor", "nowhere")
    assert done.returncode == 3 and done.stderr.count("\n") == 1
    done = run("doctor", "nowhere", "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(self: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS["models"], "run", interrupted)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "opticus: interrupted; what was written is valid\n"


def test_val_by_the_rule_of_pascal_voc(cli: Any) -> None:
    import opticus

    torch.manual_seed(0)
    opticus.save(opticus.create("centernet/tiny", classes=10), "c.safetensors")
    common = ("val", "centernet/tiny", "weights=c.safetensors", "data=scenes", "limit=4", "quiet=true", "--json")
    for rule in ("voc07", "voc10"):
        found = json.loads(cli(*common, f"metric={rule}", "out=kept").out)
        assert list(found["values"]) == ["mAP"] and found["protocol"]["metric"] == rule
        assert json.loads(Path("kept/passport.json").read_text())["protocols"][0]["metric"] == rule
    assert json.loads(cli(*common, "metric=coco").out)["protocol"]["metric"] == "coco"
    answer = cli(*common, "metric=voc")
    assert answer.code == 2 and "did you mean 'voc" in answer.sentence


def test_a_protocol_of_detection_is_not_for_classifiers(cli: Any, trained: Path) -> None:
    answer = cli("val", trained, "data=digits", "limit=4", "metric=voc07")
    assert answer.code == 2 and "metric=voc07 is a protocol of detection" in answer.sentence


def found_in(folder: Path) -> Path:
    """A results file in which another program has found every object of the test split but the last."""
    tree = json.loads((folder / "annotations" / "instances_test.json").read_text())
    names = ("image_id", "category_id", "bbox")
    records = [{**{key: one[key] for key in names}, "score": 0.9} for one in tree["annotations"][:-1]]
    Path("found.json").write_text(json.dumps(records))
    return Path("found.json")


def test_val_scores_results_of_another_program(cli: Any, coco: Path) -> None:
    results = found_in(coco)
    answer = cli("val", "--results", results, f"data={coco}")
    assert answer.code == 0 and answer.out.startswith("AP 0.") and answer.err == ""
    file = coco / "annotations" / "instances_test.json"
    found = json.loads(cli("val", f"results={results}", f"data={file}", "--json", "out=kept", "--errors").out)
    assert 0.5 < found["values"]["AP"] < 1 and found["protocol"]["images"] == 3
    assert found["errors"]["counts"]["missed"] == 1 and found["errors"]["gains"]["missed"] > 0
    page = Path("kept/report.html").read_text()
    assert json.loads(Path("kept/passport.json").read_text()) and 'id="errors"' in page and "found.json: AP 0." in page
    for rule in ("voc07", "voc10"):
        found = json.loads(cli("val", f"results={results}", f"data={coco}", f"metric={rule}", "--json", f"out={rule}").out)
        assert list(found["values"]) == ["mAP"] and Path(rule, "report.html").is_file()


def test_val_shows_a_class_step_by_step(cli: Any, coco: Path) -> None:
    results = found_in(coco)
    tree = json.loads((coco / "annotations" / "instances_test.json").read_text())
    name = next(c["name"] for c in tree["categories"] if c["id"] == tree["annotations"][0]["category_id"])
    answer = cli("val", f"results={results}", f"data={coco}", f"table={name}", "--errors")
    assert "rank  picture" in answer.out and "AP (coco)" in answer.out and "gained without the errors of one kind" in answer.out
    rows = json.loads(cli("val", f"results={results}", f"data={coco}", f"table={name}", "--json").out)["table"]["rows"]
    assert rows[0]["verdict"] == "TP" and rows[0]["precision"] == 1.0
    answer = cli("val", f"results={results}", f"data={coco}", "table=unheard")
    assert answer.code == 2 and "unknown class 'unheard'" in answer.sentence


def test_val_refuses_what_does_not_go_together(cli: Any, coco: Path, trained: Path) -> None:
    results = found_in(coco)
    for words, sentence in (
        ((), "opticus val needs MODEL, or results= of another program"),
        ((f"results={results}",), "opticus val needs data=, such as: opticus val results=found.json data=path/to/coco"),
        ((trained, f"results={results}", f"data={coco}"), "model and results= exclude each other"),
        ((f"results={results}", f"data={coco}", "limit=2"), "limit and results= exclude each other"),
        ((trained, "data=digits", "limit=4", "quiet=true", "table=3"), "table is for detectors"),
        ((trained, "data=digits", "limit=4", "quiet=true", "--errors"), "errors is for detectors"),
    ):
        answer = cli("val", *words)
        assert answer.code == 2 and sentence in answer.sentence, answer
    results.write_text('[{"image_id": 12345678, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]')
    answer = cli("val", f"results={results}", f"data={coco}")
    assert answer.code == 3 and "found.json: record 0: image_id 12345678 is unknown" in answer.sentence
