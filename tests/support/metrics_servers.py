"""Servers on this machine that receive metrics, by StatsD over UDP and by OpenTelemetry over HTTP."""

import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest


class MetricsServer:
    """A server, the variables that have Airflow send to it, and the last value of each gauge that it has received."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self.gauges: dict[str, float] = {}


@contextmanager
def open_statsd() -> Iterator[MetricsServer]:
    """A StatsD server."""

    class Receive(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            for line in self.request[0].decode().splitlines():
                name, _, rest = line.partition(":")
                value, kind = rest.split("|")[:2]
                if kind == "g":
                    received.gauges[name] = float(value)

    with _serving(socketserver.UDPServer(("127.0.0.1", 0), Receive)) as port:
        metrics = {"STATSD_ON": "True", "STATSD_HOST": "127.0.0.1", "STATSD_PORT": str(port)}
        received = MetricsServer({f"AIRFLOW__METRICS__{name}": value for name, value in metrics.items()})
        yield received


@contextmanager
def open_collector() -> Iterator[MetricsServer]:
    """A collector of OpenTelemetry; the names of its gauges have their tag ``dag_id`` in braces."""

    class Receive(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            for resource in ExportMetricsServiceRequest.FromString(content).resource_metrics:
                for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                    for point in metric.gauge.data_points:
                        tags = {tag.key: tag.value.string_value for tag in point.attributes}
                        value = point.as_double if point.HasField("as_double") else point.as_int
                        received.gauges[f"{metric.name}{{{tags['dag_id']}}}"] = value
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with _serving(HTTPServer(("127.0.0.1", 0), Receive)) as port:
        environment = {
            "AIRFLOW__METRICS__OTEL_ON": "True",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"http://127.0.0.1:{port}/v1/metrics",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        }
        received = MetricsServer(environment)
        yield received


@contextmanager
def _serving(server: socketserver.BaseServer) -> Iterator[int]:
    """Serve in a thread; the port."""
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
