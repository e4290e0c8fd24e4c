"""The web application behind the page "ML": for users who are logged in to Airflow, and for nobody else."""

# FastAPI reads annotations at run time: they stay objects, and what they name is imported here.
from pathlib import Path

from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
from airflow.api_fastapi.core_api.security import requires_access_view
from airflow.providers.common.compat.sdk import conf
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import FileResponse, HTMLResponse, Response

from airflow_ml_provider.plugins import documents, overview

# Whatever a document's scripts do, they run in an origin of their own: without cookies, without Airflow's session.
_DOCUMENT = {
    "Content-Security-Policy": "sandbox allow-scripts",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, no-cache",
}
_PAGE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "private, no-cache",
}

app = FastAPI(
    title="ML",
    dependencies=[Depends(requires_access_view(AccessView.WEBSITE))],
    openapi_url=None,
    docs_url=None,
    redoc_url=None,
    redirect_slashes=False,
)


@app.get("/files/{path:path}")
def document(path: str) -> Response:
    """Show a file below one of the folders in the option `documents` of Airflow's section `ml`."""
    folders = _folders()
    found = documents.find(f"/{path}", folders)
    if found is None:
        raise HTTPException(404, "no such document; folders are shown that [ml] documents names")
    kind = documents.TYPES[found.suffix.lower()]
    if found.suffix.lower() != ".html":
        return FileResponse(found, media_type=kind, headers=_DOCUMENT)
    text = found.read_text(encoding="utf-8", errors="replace")
    return Response(documents.self_contained(text, found, folders), media_type=kind, headers=_DOCUMENT)


@app.get("/page")
def page() -> HTMLResponse:
    """Show the registered models, their champions, the last decisions of gates and the journals."""
    models, problem = overview.read(conf.get("ml", "mlflow_conn_id", fallback="mlflow_default"))
    return HTMLResponse(overview.render(models, problem, _folders()), headers=_PAGE)


def _folders() -> tuple[Path, ...]:
    return documents.roots(conf.get("ml", "documents", fallback="") or "")
