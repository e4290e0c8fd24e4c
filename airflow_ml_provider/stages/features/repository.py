"""A Feast repository: its definitions, its registry and its online store, safe against concurrent runs and crashes."""

from __future__ import annotations

import importlib
import os
import runpy
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Optional

from airflow_ml_provider import codec, tables
from airflow_ml_provider.exceptions import Conflict, MissingLibrary, SpecError
from airflow_ml_provider.intervals import Interval
from airflow_ml_provider.stages.features.logic import Pick, View

STORE_VARIABLE = "ML_FEATURE_STORE"
CONFIG, DEFINITIONS, APPLIED, LOCK = "feature_store.yaml", "definitions.py", "applied.json", ".lock"
LOCK_TIMEOUT_S = 600.0

_SQL_TYPES = {
    "STRING": "VARCHAR", "INT32": "INTEGER", "INT64": "BIGINT", "FLOAT32": "FLOAT", "FLOAT64": "DOUBLE",
    "BOOL": "BOOLEAN", "UNIX_TIMESTAMP": "TIMESTAMPTZ", "BYTES": "BLOB",
}  # fmt: skip


def feast() -> Any:
    """Import Feast without typeguard, which would parse and compile nineteen of its classes anew: half of the time."""
    if "feast" not in sys.modules and find_spec("typeguard"):
        typeguard: Any = importlib.import_module("typeguard")
        checked = typeguard.typechecked
        typeguard.typechecked = lambda target=None, **_: (lambda cls: cls) if target is None else target
        try:
            return importlib.import_module("feast")
        finally:
            typeguard.typechecked = checked
    return importlib.import_module("feast")


@dataclass(frozen=True)
class Repository:
    """What a repository defines.

    Attributes:
        path: its folder.
        store: root folder of the data; `${ML_FEATURE_STORE}` in `feature_store.yaml`.
        objects: the Feast objects of `definitions.py`.
        views: feature views over files, by name.
        services: feature services by name.
        digest: of all definitions.
    """

    path: Path
    store: Path
    objects: Sequence[Any] = field(repr=False)
    views: Mapping[str, View]
    services: Mapping[str, Sequence[Pick]]
    digest: str

    @property
    def folder(self) -> Path:
        """Where the lock and the digest of what was applied are kept."""
        return self.store / "feast"


def load(repo: Path, store: Path) -> Repository:
    """Return the repository in a folder; its `definitions.py` is run with `ML_FEATURE_STORE` in the environment.

    Raises:
        SpecError: a file is missing or does not work, or a feature view lacks its schema.
    """
    fe = feast()
    for name in (CONFIG, DEFINITIONS):
        if not (repo / name).is_file():
            raise SpecError(f"{repo} holds no {name}; a Feast repository needs {CONFIG} and {DEFINITIONS}")
    with _variable(store), _path(repo):
        try:
            names = runpy.run_path(str(repo / DEFINITIONS))
        except Exception as error:
            raise SpecError(f"{repo / DEFINITIONS} failed: {type(error).__name__}: {error}") from error
    kinds = (
        fe.Entity,
        fe.FeatureView,
        fe.OnDemandFeatureView,
        fe.FeatureService,
        fe.Project,
        fe.data_source.DataSource,
    )
    objects = list({id(v): v for v in names.values() if isinstance(v, kinds)}.values())
    entities = {e.name: e for e in objects if isinstance(e, fe.Entity)}
    views = {
        v.name: _view(v, entities, store)
        for v in objects
        if isinstance(v, fe.FeatureView) and isinstance(v.batch_source, fe.FileSource)
    }
    if not views:
        raise SpecError(f"{repo / DEFINITIONS} defines no feature view over files; define at least one FeatureView")
    services = {s.name: _picks(s, views) for s in objects if isinstance(s, fe.FeatureService)}
    # Taken now, since Feast adds to the objects when it applies them.
    protos = sorted(_timeless(item.to_proto()).SerializeToString(deterministic=True).hex() for item in objects)
    digest = codec.digest([str(store), (repo / CONFIG).read_text(encoding="utf-8"), protos])
    return Repository(repo, store, objects, views, services, digest)


def open_store(repo: Path, store: Optional[Path] = None, registry: Optional[Path] = None) -> Any:
    """Return Feast's `FeatureStore` of a repository.

    Parameters:
        store: what `${ML_FEATURE_STORE}` means; by default what the environment says.
        registry: file to use instead of the one that the repository names.

    Raises:
        SpecError: `feature_store.yaml` is missing or wrong.
        MissingLibrary: one of the stores that it names needs a library that is not there.
    """
    fe = feast()
    from feast.errors import FeastError, FeastModuleImportError
    from feast.repo_config import FeastConfigError, load_repo_config

    with _variable(store):
        try:
            config = load_repo_config(repo, repo / CONFIG)
        except FileNotFoundError as error:
            raise SpecError(f"{repo} holds no {CONFIG}; give the folder of a Feast repository") from error
        except FeastModuleImportError as error:
            raise MissingLibrary(
                f"{repo / CONFIG} names a store that {sys.executable} cannot load: {error.__cause__}; "
                f"run: {sys.executable} -m pip install 'feast[duckdb]' (or the extra of your store)"
            ) from error
        except (FeastConfigError, FeastError) as error:
            raise SpecError(f"{repo / CONFIG} is wrong: {error}") from error
        if registry is not None:
            config.registry.path = str(registry)
        return fe.FeatureStore(repo_path=str(repo), config=config)


class Session:
    """A repository opened for change, by one process at a time; see `session`."""

    def __init__(self, repository: Repository, store: Any) -> None:
        self.repository, self.store = repository, store
        self.changed = False

    def apply(self) -> bool:
        """Register the definitions, and remove what is not defined any more, unless that was done already."""
        applied = self.repository.folder / APPLIED
        known = {view.name for view in self.store.list_feature_views()}
        if (
            applied.exists()
            and applied.read_text(encoding="utf-8") == self.repository.digest
            and set(self.repository.views) <= known
        ):
            return False
        self.store.apply(list(self.repository.objects), objects_to_delete=self._obsolete(), partial=False)
        self.changed = True
        return True

    def newest(self, view: str, interval: Interval) -> datetime:
        """Return the end of the newest interval of a view that was materialised; at least that of `interval`.

        Only materialisations that began after `interval` count, so one with an end far in the future changes nothing.
        """
        recorded = self.store.get_feature_view(view).materialization_intervals
        later: list[datetime] = [end for start, end in recorded if start >= interval.end]
        return max([interval.end, *later])

    def record(self, view: str, interval: Interval) -> None:
        """Note in the registry that an interval of a view is in the online store."""
        feature_view = self.store.get_feature_view(view)
        if (interval.start, interval.end) in feature_view.materialization_intervals:
            return
        project = self.store.project
        self.store.registry.apply_materialization(feature_view, project, interval.start, interval.end, commit=False)
        self.store.registry.commit()
        self.changed = True

    def _obsolete(self) -> list[Any]:
        kept = {item.name for item in self.repository.objects}
        store = self.store
        there = [*store.list_feature_services(), *store.list_feature_views(), *store.list_entities()]
        return [item for item in there if item.name not in kept and item.name != "__dummy"]


@contextmanager
def session(repository: Repository, timeout_s: float = LOCK_TIMEOUT_S) -> Iterator[Session]:
    """Open a repository for change: one process at a time, and a registry file that is replaced in one step.

    Feast itself neither locks its file registry nor writes it in one step. Other registries are used as they are.

    Raises:
        Conflict: another run held the lock for longer than `timeout_s`.
    """
    with locked(repository.folder / LOCK, timeout_s), _registry(repository) as (registry, commit):
        opened = Session(repository, open_store(repository.path, repository.store, registry))
        yield opened
        if opened.changed:
            commit()
            tables.write_text(repository.folder / APPLIED, repository.digest)


@contextmanager
def locked(path: Path, timeout_s: float) -> Iterator[None]:
    """Hold an exclusive lock on a file; the kernel lets go of it when the process ends, however it ends."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    with open(path, "a", encoding="utf-8") as handle:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise Conflict(f"{path} was locked by another run for more than {timeout_s:g} s") from None
                time.sleep(0.05)
        yield


@contextmanager
def _registry(repository: Repository) -> Iterator[tuple[Optional[Path], Callable[[], None]]]:
    """Give a copy of the registry file to work on, and what puts it in the file's place; none for other registries."""
    config = open_store(repository.path, repository.store).config.registry
    if config.registry_type != "file" or "://" in str(config.path):
        yield None, lambda: None
        return
    target = repository.path / config.path  # an absolute path stays as it is
    aside = target.with_name(f".{target.name}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    aside.unlink(missing_ok=True)
    try:
        if target.exists():
            shutil.copyfile(target, aside)
        yield aside, lambda: os.replace(aside, target)
    finally:
        aside.unlink(missing_ok=True)


def _view(view: Any, entities: Mapping[str, Any], store: Path) -> View:
    source = view.batch_source
    if not view.features:
        raise SpecError(f"feature view {view.name!r} has no schema; list its features as Field(name=…, dtype=…)")
    column = {feature: name for name, feature in source.field_mapping.items()}
    keys = [entities[name].join_key for name in view.entities if name in entities]
    if len(keys) != len(view.entities) or not keys:
        raise SpecError(f"feature view {view.name!r} needs entities that {DEFINITIONS} defines, got {view.entities}")
    path = source.path[len("file://") :] if source.path.startswith("file://") else source.path
    inside = Path(path).is_absolute() and (store / "tables") in Path(path).parents
    types = {f.name: _SQL_TYPES[f.dtype.name] for f in view.features if getattr(f.dtype, "name", "") in _SQL_TYPES}
    return View(
        name=view.name,
        path=path,
        table=Path(path).relative_to(store / "tables").parts[0] if inside else None,
        event=source.timestamp_field,
        created=source.created_timestamp_column or None,
        ttl_s=view.ttl.total_seconds() if view.ttl else 0.0,
        keys={key: column.get(key, key) for key in keys},
        features={f.name: column.get(f.name, f.name) for f in view.features},
        types=types,
        online=bool(view.online),
    )


def _picks(service: Any, views: Mapping[str, View]) -> list[Pick]:
    picks = []
    for projection in service.feature_view_projections:
        if projection.name not in views:
            raise SpecError(f"feature service {service.name!r} uses {projection.name!r}, which is no view over files")
        view, mapped = views[projection.name], dict(projection.join_key_map or {})
        keys = {key: mapped.get(key, key) for key in view.keys}
        names = tuple(feature.name for feature in projection.features)
        picks.append(Pick(view, names, projection.name_alias or view.name, keys))
    return picks


def _timeless(message: Any) -> Any:
    """Remove what Feast adds to a definition from the clock: when the object was made."""
    for descriptor, value in message.ListFields():
        if descriptor.name in ("meta", "created_timestamp", "last_updated_timestamp"):
            message.ClearField(descriptor.name)
        elif descriptor.message_type and not descriptor.message_type.GetOptions().map_entry:
            for part in value if isinstance(value, Sequence) else [value]:
                _timeless(part)
    return message


@contextmanager
def _variable(store: Optional[Path]) -> Iterator[None]:
    before = os.environ.get(STORE_VARIABLE)
    if store is not None:
        os.environ[STORE_VARIABLE] = str(store)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(STORE_VARIABLE, None)
        else:
            os.environ[STORE_VARIABLE] = before


@contextmanager
def _path(folder: Path) -> Iterator[None]:
    """Let `definitions.py` import modules beside it."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
