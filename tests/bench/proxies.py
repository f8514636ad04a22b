"""The backends and the proxies under test: their configurations, and how each is started.

Every configuration that was used is kept in `CONFIGS` and goes into the results.
"""

import json
import os
import re
import shutil
import urllib.request

from processes import LOAD_CORE, PROXY_CORE, Process, accepts, free_port

BODY = "0123456789abcdef" * 4

CONFIGS = {}

# A backend that was stopped a moment ago answers when it has caught up.
ANSWERS_WITHIN_S = 10

# Never by way of a proxy of the environment.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def write(directory, name, text):
    """A configuration file, kept for the results under the name of its directory."""
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, name)
    with open(path, "w") as file:
        file.write(text)
    CONFIGS[os.path.basename(directory)] = text
    return path


class Server:
    """Something with a `process` and a `port`; entered when it is ready, gone when left."""

    def ready(self):
        return accepts(self.port)

    @property
    def pid(self):
        """Of the process that does the work."""
        return self.process.pid

    def __enter__(self):
        self.process.wait_until(self.ready, "it does not answer")
        return self

    def __exit__(self, *_):
        self.process.end()


class Backend(Server):
    """An nginx, master and one worker in a process group of their own, that answers 64 bytes.

    `counted`: it notes when each request came, and the `Host` that it named.
    """

    def __init__(self, tools, work, name, counted=False, host="127.0.0.1"):
        directory = os.path.join(work, name)
        self.host, self.port = host, free_port()
        self.log = os.path.join(directory, "requests.log")
        # Unbuffered: a line for every request that nginx has read, cancelled or not.
        access = f"log_format seen '$msec $http_host'; access_log {self.log} seen;" if counted else "access_log off;"
        temporary = " ".join(f"{kind}_temp_path {directory}/{kind};"
                             for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        config = write(directory, "nginx.conf", f"""
daemon off; worker_processes 1; pid {directory}/pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
  {temporary}
  {access}
  keepalive_timeout 1h; keepalive_requests 1000000000;
  server {{
    listen {self.host}:{self.port} backlog=4096;
    location = /scout {{ access_log off; return 200; }}
    location / {{ default_type text/plain; return 200 "{BODY}"; }}
  }}
}}
""")
        argv = [tools.nginx, "-p", directory, "-c", config, "-e", "stderr"]
        self.process = Process(argv, LOAD_CORE, os.path.join(directory, "log"))
        self.address = f"{self.host}:{self.port}"

    def ready(self):
        return accepts(self.port, self.host)

    def requests(self):
        """How many it has read so far."""
        with open(self.log, "rb") as log:
            return log.read().count(b"\n")

    def arrivals(self):
        """When each came, in Unix seconds to the millisecond, and the `Host` that it named."""
        with open(self.log) as log:
            return [(float(at), host) for at, host in (line.split(" ") for line in log.read().splitlines())]


class SlowBackend(Server):
    """A testapp, one thread, whose delay before each answer can be set; its timer rounds up to whole milliseconds.

    With `places` as many requests are worked on at a time, and the others wait their turn.
    """

    def __init__(self, tools, work, name, delay_ms, places=None):
        directory = os.path.join(work, name)
        os.makedirs(directory, exist_ok=True)
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.delay_ms = delay_ms
        self.places = places
        self.process = Process([tools.testapp, self.address, name], LOAD_CORE, os.path.join(directory, "log"))

    def __enter__(self):
        super().__enter__()
        self.delay(self.delay_ms)
        return self

    def delay(self, ms):
        """From now on."""
        places = f"&places={self.places}" if self.places else ""
        ask = urllib.request.Request(f"http://{self.address}/delay?ms={ms:g}{places}", method="PUT")
        with DIRECT.open(ask, timeout=ANSWERS_WITHIN_S):
            pass

    def requests(self):
        """How many it has read so far; scouts do not count."""
        with DIRECT.open(f"http://{self.address}/count", timeout=ANSWERS_WITHIN_S) as answer:
            return json.load(answer)["requests"]


class HAProxy(Server):
    """One thread; one listener on `port`. `rules`: lines of the frontend."""

    def __init__(self, tools, work, backends, balance, rules=(), name=None):
        directory = os.path.join(work, name or f"haproxy-{balance.split('(')[0]}")
        self.port = free_port()
        servers = "\n  ".join(f"server b{n} {backend.address}" for n, backend in enumerate(backends))
        lines = "".join(f"{rule}\n  " for rule in rules)
        config = write(directory, "haproxy.cfg", f"""
global
  nbthread 1
  maxconn 4000
defaults
  mode http
  option http-keep-alive
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  timeout http-keep-alive 1h
frontend in
  bind 127.0.0.1:{self.port}
  {lines}default_backend out
backend out
  balance {balance}
  http-reuse always
  {servers}
""")
        self.process = Process([tools.haproxy, "-db", "-f", config], PROXY_CORE, os.path.join(directory, "log"))


class Nginx(Server):
    """One worker; connections to the backends are kept. `balance` is a directive, or nothing for its round robin."""

    def __init__(self, tools, work, backends, balance):
        directory = os.path.join(work, "nginx-" + (balance.split()[0] if balance else "round-robin"))
        self.port = free_port()
        servers = " ".join(f"server {backend.address};" for backend in backends)
        temporary = " ".join(f"{kind}_temp_path {directory}/{kind};"
                             for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        config = write(directory, "nginx.conf", f"""
daemon off; worker_processes 1; pid {directory}/pid; error_log stderr error;
events {{ worker_connections 8192; }}
http {{
  {temporary}
  access_log off; keepalive_timeout 1h; keepalive_requests 1000000000;
  upstream out {{ {f"{balance};" if balance else ""} {servers} keepalive 1024; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{self.port} backlog=4096;
    location / {{ proxy_pass http://out; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
}}
""")
        argv = [tools.nginx, "-p", directory, "-c", config, "-e", "stderr"]
        self.process = Process(argv, PROXY_CORE, os.path.join(directory, "log"))

    @property
    def pid(self):
        """The one worker's; the master does nothing."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children") as children:
            return int(children.read().split()[0])


class Envoy(Server):
    """One worker, LEAST_REQUEST; the limits that would stop it are raised.

    It hedges when `per_try_timeout` passes, up to `retries` times; without one it neither hedges nor retries.
    `filters` come before the router. `source`: the address that it dials the backends from, if it matters.
    """

    def __init__(self, tools, work, backends, per_try_timeout=None, retries=0, filters=(), name="envoy-plain",
                 source=None):
        directory = os.path.join(work, f"envoy-{per_try_timeout}-{retries}" if per_try_timeout else name)
        self.port = free_port()
        listen = {"socket_address": {"address": "127.0.0.1", "port_value": self.port}}
        route = {"cluster": "out", "timeout": "15s"}
        if per_try_timeout:
            route.update(hedged(per_try_timeout, retries))
        manager = {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3."
                     "HttpConnectionManager",
            "stat_prefix": "in",
            "http_filters": [*filters, {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }],
            "route_config": {"virtual_hosts": [{
                "name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}],
            }]},
        }
        endpoints = [{"endpoint": {"address": {"socket_address": {
            "address": backend.address.split(":")[0], "port_value": backend.port}}}} for backend in backends]
        bound = {"upstream_bind_config": {"source_address": {"address": source, "port_value": 0}}} if source else {}
        config = write(directory, "envoy.json", json.dumps({"static_resources": {
            "listeners": [{"name": "in", "address": listen, "filter_chains": [{"filters": [
                {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]}],
            "clusters": [{
                "name": "out", "type": "STATIC", "connect_timeout": "1s", "lb_policy": "LEAST_REQUEST", **bound,
                "circuit_breakers": {"thresholds": [{"max_retries": 1024, "max_requests": 4096,
                                                     "max_connections": 4096, "max_pending_requests": 4096}]},
                "load_assignment": {"cluster_name": "out", "endpoints": [{"lb_endpoints": endpoints}]},
            }],
        }}, indent=1))
        argv = [tools.envoy, "-c", config, "--concurrency", "1", "--disable-hot-restart", "-l", "warning"]
        self.process = Process(argv, PROXY_CORE, os.path.join(directory, "log"))


def hedged(per_try_timeout, retries):
    """What a route of Envoy's needs to hedge at once, and on another host."""
    return {
        "hedge_policy": {"hedge_on_per_try_timeout": True},
        "retry_policy": {
            "retry_on": "5xx,reset,connect-failure",
            "num_retries": retries,
            "per_try_timeout": per_try_timeout,
            "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.002s"},
            "retry_host_predicate": [{
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.host."
                                          "previous_hosts.v3.PreviousHostsPredicate"},
            }],
            "host_selection_retry_max_attempts": 5,
        },
    }


class Evenkeel(Server):
    """One worker, every default unless `policy` says otherwise; `port` leads to the service `echo`.

    `scout` says how `backends` answer scouts themselves.
    """

    def __init__(self, tools, work, name, backends=(), offers=(), join=(), policy=None, address="127.0.0.1",
                 scout=None, ratelimit=None):
        directory = os.path.join(work, name)
        shutil.rmtree(directory, ignore_errors=True)
        self.name = name
        self.port, self.admin, self.catalog = free_port(), free_port(), free_port()
        self.gossip = f"{address}:{free_port()}"
        config = {
            "workers": 1,
            "node": {"name": name, "address": address, "data_dir": os.path.join(directory, "data")},
            "mesh": {"join": list(join), "gossip": {"listen": self.gossip},
                     "data": {"listen": f"{address}:{free_port()}"}},
            "outbound": {"listen": f"127.0.0.1:{free_port()}",
                         "listeners": [{"listen": f"127.0.0.1:{self.port}", "service": "echo"}]},
            "discovery": {"http": f"127.0.0.1:{self.catalog}", "dns": f"127.0.0.1:{free_port()}"},
            "admin": {"listen": f"127.0.0.1:{self.admin}"},
            "services": [{"name": "echo", "id": f"echo-{backend.port}", "address": backend.address,
                          "protocol": "http"} for backend in offers],
        }
        if backends:
            config["upstreams"] = [{"name": "echo", "endpoints": [backend.address for backend in backends],
                                    **({"scout": scout} if scout else {})}]
        if policy:
            config["policy"] = policy
        if ratelimit:
            config["ratelimit"] = {"listen": f"127.0.0.1:{free_port()}", **ratelimit}
        # YAML's flow style, which is JSON.
        path = write(directory, "evenkeel.yaml", json.dumps(config, indent=1))
        self.process = Process([tools.evenkeel, "run", "-c", path], PROXY_CORE, os.path.join(directory, "log"))

    def ready(self):
        return self._get(self.admin, "/readyz") is not None

    def wait_for_instances(self, count):
        """Until the mesh has told this host of so many healthy instances of `echo`."""
        def known():
            found = self._get(self.catalog, "/v1/health/service/echo?passing")
            return found is not None and len(json.loads(found)) == count
        self.process.wait_until(known, f"it does not learn of {count} instances")

    def wait_for_members(self, count):
        def known():
            found = self._get(self.catalog, "/v1/agent/members")
            return found is not None and len(json.loads(found)) == count
        self.process.wait_until(known, f"it does not learn of {count} hosts")

    def wait_for_roster(self, count):
        """Until so many hosts share the resources, and nobody goes by an older roster."""
        def settled():
            roster = self.quotas()["roster"] or {}
            return roster.get("settled") and len(roster["members"]) == count
        self.process.wait_until(settled, f"it does not share with {count} hosts")

    def quotas(self):
        return json.loads(self._get(self.admin, "/v1/quotas") or '{"roster": null, "resources": []}')

    def metric(self, name):
        """Its values, by their labels."""
        lines = (self._get(self.admin, "/metrics") or b"").decode()
        return {labels: float(value) for labels, value in re.findall(rf"^{name}{{(.*)}} (\S+)$", lines, re.M)}

    @staticmethod
    def _get(port, path):
        try:
            with DIRECT.open(f"http://127.0.0.1:{port}{path}", timeout=1) as answer:
                return answer.read()
        except OSError:
            return None
