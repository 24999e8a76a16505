"""`roundoff spikes` as a command."""

import json

LOG = "".join(
    f"{i},{3.0 if i == 40 else 'nan' if i == 70 else 1 + i % 3 / 50}\n" for i in range(90)
)


def test_the_table_and_the_document(inside, folder):
    (folder.path / "log.csv").write_text(f"step,loss\n{LOG}")
    out, err = inside("spikes", "log.csv")
    assert out.startswith("2 spikes in 90 values of 1 series")
    assert max(map(len, out.splitlines())) <= 100
    assert [line.split()[0] for line in out.splitlines()[4:6]] == ["40", "70"]
    assert "again: roundoff spikes log.csv" in err
    document = json.loads(inside("spikes", "log.csv", "--json", "-o", "found.json")[0])
    assert [(s["step"], s["value"], s["rule"]) for s in document["spikes"]] == [
        (40, 3.0, "median"), (70, "nan", "nonfinite")]  # fmt: skip
    assert json.loads((folder.path / "found.json").read_text())["spikes"] == document["spikes"]
    assert document["series"] == [
        {"log": "log.csv", "series": "loss", "values": 90, "first": 0, "last": 89}]  # fmt: skip


def test_other_rules_and_several_logs(inside, folder):
    for name in "ab":
        (folder.path / f"{name}.csv").write_text(f"step,loss\n{LOG}")
    out, _ = inside("spikes", "a.csv", "b.csv", "--rule", "absolute:limit=2")
    assert [line.split()[:2] for line in out.splitlines()[4:6]] == [
        ["40", "a.csv:"],
        ["40", "b.csv:"],
    ]
    out, _ = inside("spikes", "a.csv", "--rule", "max")
    assert out == "0 spikes in 90 values of 1 series: loss\n"


def test_bad_input_gives_one_line(inside, folder):
    (folder.path / "log.csv").write_text(f"step,loss\n{LOG}")
    for arguments, words in (
        ((), "and none was given"),
        (("absent.csv",), "no such file or folder"),
        (("log.csv", "--rule", "medain"), "did you mean 'median'"),
        (("log.csv", "--series", "x"), "there are loss"),
        (("log.csv", "-o", "log.csv/found.json"), "log.csv"),
    ):
        out, err = inside("spikes", *arguments, status=2)
        assert out == ""
        assert words in err
        assert err.strip().count("\n") == 0
