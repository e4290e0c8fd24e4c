"""The page "ML" on a real MLflow database."""

from __future__ import annotations

from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("airflow")
pytest.importorskip("mlflow")

from airflow_ml_provider.plugins import overview
from airflow_ml_provider.provenance import RunInfo
from airflow_ml_provider.refs import ModelRef
from airflow_ml_provider.registry import Registry
from airflow_ml_provider.registry.mlflow import IDENTITY
from airflow_ml_provider.testing import packages
from airflow_ml_provider.testing.tracking import tracking_uri

__all__ = ["tracking_uri"]
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning")

JAN, FEB = (datetime(2013, month, 1, tzinfo=timezone.utc) for month in (1, 2))


@pytest.fixture
def registry(tracking_uri: str) -> Registry:
    return Registry(tracking_uri, ui_url="https://mlflow.example")


def register(registry: Registry, folder: Path, seed: int) -> ModelRef:
    ref = packages.package(folder / f"package-{seed}", seed=seed, segment={"origin": "EWR"}, trained_until=JAN)
    return registry.register("late", Path(ref.uri), ref, {IDENTITY: str(seed)}, "candidate")


def promote(registry: Registry, ref: ModelRef, at: datetime, expected: str | None, reason: str = "") -> None:
    registry.move(
        "late", "champion", ref, action="promote", info=RunInfo(dag_id="training", run_id=f"run {ref.version}"),
        effective_from=at, expected=expected, evidence="sha256:e", reason=reason,
    )  # fmt: skip


def test_champion_decisions_and_journal(registry: Registry, tmp_path: Path) -> None:
    first, second = register(registry, tmp_path, 1), register(registry, tmp_path, 2)
    evidence = tmp_path / "evidence" / "1.json"
    evidence.parent.mkdir()
    evidence.write_text("{}")
    evidence.with_suffix(".html").write_text("page")
    registry.attach_evidence(first, [evidence], "sha256:1", "passed", str(evidence))
    registry.attach_evidence(second, [evidence], "sha256:1", "refused", str(tmp_path / "gone.json"))
    promote(registry, first, JAN, None, "better by <0.01>")

    (model,) = overview.collect(registry)
    assert (model.name, model.champion, model.faults) == ("late", first, ())
    assert [(v.ref.version, v.decision) for v in model.versions] == [("2", "refused"), ("1", "passed")]
    text = overview.render([model], "", (tmp_path,))
    assert "Champion: version 1" in text
    assert "for data from 2013-01-01 00:00 on" in text
    assert f'<a href="files{tmp_path}/evidence/1.html">evidence</a>' in text
    assert text.count(">evidence</a>") == 1  # the other one's record is not there
    assert '<a href="https://mlflow.example/#/models/late/versions/2">2</a>' in text
    assert "better by &lt;0.01&gt;" in text
    assert "lightgbm (origin EWR)" in text or "(origin EWR)" in text
    # Files outside the folders that may be shown are not linked.
    assert ">evidence</a>" not in overview.render([model], "", ())


def test_an_altered_journal_is_shown_as_such(registry: Registry, tmp_path: Path) -> None:
    ref = register(registry, tmp_path, 1)
    promote(registry, ref, JAN, None)
    promote(registry, register(registry, tmp_path, 2), FEB, "1")
    with registry._client() as client:
        client.delete_registered_model_tag("late", "airflow_ml.journal.champion.000001")
    (model,) = overview.collect(registry)
    assert len(model.faults) == 1
    text = overview.render([model], "", ())
    assert '<p class="fault">journal of late@champion' in text
    assert "Champion: version 2" in text


def test_no_models_and_no_registry(registry: Registry) -> None:
    assert overview.collect(registry) == []
    assert "No model is registered yet" in overview.render([], "", ())
    assert "cannot &lt;reach&gt; it" in overview.render([], "cannot <reach> it", ())


def test_everything_is_escaped() -> None:
    class Tags(HTMLParser):
        found: set[str] = set()  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.found.add(tag)

    evil = "<script>x</script>'\""
    ref = ModelRef(
        evil, "/m", "sha256:0", version=evil, engine=evil, segment={evil: evil}, trained_until=JAN, metrics={evil: 1.0}
    )
    version = overview.Version(ref, evil, "/nowhere.json", "javascript:alert(1)")
    text = overview.render([overview.Model(evil, ref, (version,), (), (evil,))], "", ())
    parser = Tags()
    parser.feed(text)
    assert "script" not in parser.found
    assert "javascript:" not in text


def test_a_missing_connection_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    def none(hook: BaseHook, conn_id: str) -> object:
        raise AirflowNotFoundException(conn_id)

    monkeypatch.setattr(BaseHook, "get_connection", none)
    models, problem = overview.read("mlflow_default")
    assert models == []
    assert problem.startswith("connection 'mlflow_default' is not defined; create it with type mlflow")
