"""Records as tables: names, types, NaN, and what SQL makes of them."""

import math

import pytest

from roundoff.errors import MissingLibraryError, RunError, UsageError
from roundoff.store import Run
from roundoff.store.tables import flatten, frame, sql


def line(key, **more):
    return {"schema": 1, "id": key, "status": "ok", **more}


@pytest.fixture
def run(tmp_path):
    return Run.create_or_open(tmp_path / "run", manifest={})


def fill(run, *records):
    with run.writer() as writer:
        for record in records:
            writer.append(record)


class TestNames:
    def test_a_clash_keeps_the_full_name(self):
        record = {"id": "x", "cell": {"id": 1, "seed": 2, "params": {"seed": 3, "n": 4}}}
        assert flatten(record) == {
            "id": "x",
            "cell.id": 1,
            "cell.seed": 2,
            "cell.params.seed": 3,
            "n": 4,
        }

    def test_case_alone_makes_no_name(self):
        assert list(flatten({"cell": {"P": 1}, "p": 2})) == ["cell.P", "p"]

    def test_other_prefixes(self):
        assert flatten({"a": {"b": {"c": 1}}}, drop=("a.b.",)) == {"c": 1}
        assert flatten({"a": {"b": {}}}) == {}

    def test_a_clash_in_one_row_names_the_column_in_all(self):
        table = frame([{"cell": {"x": 1}}, {"cell": {"x": 2}, "outputs": {"x": 3}}])
        assert list(table.columns) == ["cell.x", "outputs.x"]


class TestTypes:
    def test_one_nan_leaves_a_column_numeric(self, run):
        for key, value in {"a": 1.5, "b": math.nan, "c": math.inf, "d": -math.inf}.items():
            fill(run, line(key, outputs={"out": {"rmse": value}}))
        fill(run, line("e"))
        assert str(run.frame()["out_rmse"].dtype) == "float64"
        table = run.sql(
            "select id, out_rmse, out_rmse is null as missing, isnan(out_rmse) as broken "
            "from cells order by id"
        )
        assert table["missing"].tolist() == [False] * 4 + [True]
        assert table["broken"].tolist()[:4] == [False, True, False, False]
        assert table["out_rmse"].tolist()[2:4] == [math.inf, -math.inf]
        assert math.isnan(run.sql("select max(out_rmse) as m from cells")["m"][0])

    def test_integers_keep_every_digit(self):
        seed = 2**62 + 1
        assert sql("select n from t", {"t": [{"n": seed}, {}]})["n"].tolist()[0] == seed
        table = frame([{"n": seed, "m": 1}, {"m": 2}])
        assert [str(table[c].dtype) for c in ("n", "m")] == ["Int64", "int64"]
        assert table["n"][0] == seed

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([1, 2.5], [1.0, 2.5]),
            ([1, "x"], ["1", "x"]),
            ([True, 1], ["true", "1"]),
            ([[1, math.nan]], ['[1, "nan"]']),
            ([2**64], [str(2**64)]),
            ([True, False], [True, False]),
            (["é", ""], ["é", ""]),
        ],
    )
    def test_mixed_columns(self, values, expected):
        records = [{"x": value} for value in values]
        assert frame(records)["x"].tolist() == expected
        assert sql("select x from t", {"t": records})["x"].tolist() == expected

    def test_missing_values_of_every_type(self):
        table = sql("select * from t", {"t": [{"a": True, "b": "x", "c": 1, "d": None}, {}]})
        assert table.isna().sum().tolist() == [1, 1, 1, 2]
        assert frame([{"a": True, "b": "x", "c": 1, "d": None}, {}]).isna().sum().sum() == 5


class TestTables:
    def test_an_empty_run_has_empty_tables(self, run):
        for name in ("cells", "environments", "claims"):
            assert run.sql(f"select count(*) as n from {name}")["n"].tolist() == [0]
        assert run.frame().empty

    def test_all_tables_join(self, run):
        fill(run, line("a", environment="ab", cell={"params": {"seq_len": 512}}))
        run.write_document("environments/ab.json", {"schema": 1, "versions": {"torch": "2.13"}})
        run.write_document("claims.json", {"claims": [{"name": "rmse", "verdict": "pass"}]})
        table = run.sql(
            "select seq_len, versions_torch, verdict from cells "
            "join environments on environment = digest, claims"
        )
        assert table.to_dict("records") == [
            {"seq_len": 512, "versions_torch": "2.13", "verdict": "pass"}
        ]

    def test_series_are_tables(self, run):
        (run.path / "series").mkdir()
        file = run.path / "series" / "loss.parquet"
        sql(f"copy (select 1 as step, 'nan'::double as loss) to '{file}' (format parquet)", {})
        assert math.isnan(run.sql("select max(loss) as m from loss")["m"][0])

    def test_a_damaged_series_is_named(self, run):
        (run.path / "series").mkdir()
        (run.path / "series" / "loss.parquet").write_text("x")
        with pytest.raises(RunError, match=r"cannot read .*loss\.parquet"):
            run.sql("select 1")

    def test_damaged_claims(self, run):
        run.write_document("claims.json", {"claims": {}})
        with pytest.raises(RunError, match="expected a list"):
            run.sql("select 1")

    @pytest.mark.parametrize(
        "query",
        ["selec 1", "select nope from cells", "select * from nope", "", "select cast('x' as int)"],
    )
    def test_bad_sql_is_one_line(self, run, query):
        with pytest.raises(UsageError) as caught:
            run.sql(query)
        assert "\n" not in str(caught.value)

    def test_without_the_library(self, run, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "duckdb", None)
        with pytest.raises(MissingLibraryError, match=r"roundoff\[analysis\]"):
            run.sql("select 1")


class TestSeries:
    TRAINED = line(
        "t", training={"repeat": 0, "candidates": ["a"]}, parameters=5,
        log={"ulp": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": math.nan}]},
        direct={"a": {"gradient": {"verdict": "noise", "tensors": [{"name": "w", "size": 0.5}]}}},
    )  # fmt: skip
    MEASURED = line("c", cell={"seed": 3, "params": {"n": 4}}, outputs={"o": {"index": [0, 1]}})

    def test_cells_of_both_kinds_are_one_table_without_what_was_logged(self, run):
        fill(run, self.TRAINED, self.MEASURED)
        table = run.frame().set_index("id")
        assert table.loc["c", "n"] == 4
        assert table.loc["t", "parameters"] == 5
        assert table.loc["t", "direct_a_gradient_verdict"] == "noise"
        assert not [name for name in table.columns if name.startswith("log") or "tensors" in name]

    def test_a_list_of_values_stays_a_column(self, run):
        fill(run, self.TRAINED, self.MEASURED)
        assert run.sql("select o_index from cells where id = 'c'")["o_index"].tolist() == ["[0, 1]"]
        found = run.sql("select training_candidates as c from cells where id = 't'")
        assert found["c"].tolist() == ['["a"]']

    def test_what_was_logged_is_a_table_of_its_own(self, run):
        fill(run, self.TRAINED, self.MEASURED)
        log = run.sql("select *, isnan(loss) as broken from log order by step")
        assert log[["id", "part", "step"]].values.tolist() == [["t", "ulp", 1], ["t", "ulp", 2]]
        assert log["broken"].tolist() == [False, True]
        direct = run.sql("select part, name, size from direct")
        assert direct.values.tolist() == [["a.gradient.tensors", "w", 0.5]]

    def test_a_stored_series_keeps_its_name(self, run):
        import duckdb

        fill(run, self.TRAINED)
        (run.path / "series").mkdir()
        duckdb.sql("select 7 as x").write_parquet(str(run.path / "series" / "log.parquet"))
        assert run.sql("select x from log")["x"].tolist() == [7]
