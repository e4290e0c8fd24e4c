"""What runs in the pods of KServe's stand-in."""

from __future__ import annotations

# Answers with its version and the rows it got; refuses rows that have a column `bad`.
SERVER = """
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        self.answer(200, {"ready": True})
    def do_POST(self):
        got = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if any(one["name"] == "bad" for one in got["inputs"]):
            return self.answer(400, {"error": "unexpected input 'bad'"})
        rows = got["inputs"][0]["shape"][0]
        score = {"name": "score", "shape": [rows], "datatype": "FP32", "data": [0.5] * rows}
        name = self.path.split("/")[3]
        self.answer(200, {"model_name": name, "model_version": os.environ["AIRFLOW_ML_VERSION"], "outputs": [score]})
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("", 8080), Handler).serve_forever()
"""
# Sends requests on to the server beside it, and adds its own name to the answer.
BESIDE = """
import http.server, json, sys, urllib.error, urllib.request
said = dict(one.removeprefix("--").split("=", 1) for one in sys.argv[2:] if "=" in one)
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, status, data):
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        self.forward(None)
    def do_POST(self):
        self.forward(self.rfile.read(int(self.headers["Content-Length"])))
    def forward(self, body):
        try:
            url = f"http://{said['predictor_host']}{self.path}"
            answer = json.load(urllib.request.urlopen(urllib.request.Request(url, body)))
        except urllib.error.HTTPError as error:
            return self.answer(error.code, error.read())
        except OSError as error:
            return self.answer(503, str(error).encode())
        if body:
            rows = answer["outputs"][0]["shape"][0]
            told = {"name": "transformed_by", "shape": [rows], "datatype": "BYTES", "data": [sys.argv[1]] * rows}
            answer["outputs"].append(told)
        self.answer(200, json.dumps(answer).encode())
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("", int(said["http_port"])), Handler).serve_forever()
"""
COMMANDS: dict[str, list[str]] = {
    "crash": ["python3", "-c", "raise SystemExit('no model')"],
    "unready": ["sleep", "infinity"],
}
