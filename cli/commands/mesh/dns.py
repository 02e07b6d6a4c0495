"""`freehold dns`: the DNS records that the names of routes should have, and how their certificates stand.

Not here: setting them. A name server that takes signed updates is told by the node itself, for certificates alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

import click
from msgspec.structs import asdict

from cli.access import contexts
from cli.access.client import talk
from cli.frame import command
from cli.text.output import Output
from cli.text.times import moment
from protocols.api_models import NameView

TTL_S = 300
_HOST = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


@command("dns", examples=("freehold dns", "freehold dns shop.example.com", "freehold dns --zone > records.zone"))
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--zone", is_flag=True, help="Print a zone file's lines and nothing else.")
@click.option("--context", "context_name", default=None, help="The mesh, if not the current context.")
def dns(output: Output, names: tuple[str, ...], *, zone: bool, context_name: str | None) -> None:
    """Print the DNS records that the names of routes should have.

    A name leads to every node that is up and serves it. Where visitors reach a node is what its setting ingress_names
    says, or else the hosts of its mesh addresses. Below each name stands how its certificate does.
    """
    _, context = contexts.current_context(context_name)
    every = talk(context, lambda client: client.read(tuple[NameView, ...], "/v1/names"))
    pairs = [(name, records_of(name.name, name.addresses)) for name in every if not names or name.name in names]
    lines = [line for name, records in pairs for line in (records if zone else described(name, records))]
    output.result(
        {"names": [{**asdict(name), "records": records} for name, records in pairs]},
        "\n".join(lines) or "no route has a name of its own",
    )
    if not zone and any(not records for _, records in pairs):
        output.hint('write ingress_names = ["HOST"] into node.toml of the nodes that visitors reach, and restart them')


def records_of(name: str, hosts: Sequence[str]) -> list[str]:
    """Return the lines of a zone file for one name; a name that leads to names can lead to one of them alone."""
    addresses = [host for host in hosts if _version(host)]
    if addresses:
        return [f"{name}. {TTL_S} IN {'A' if _version(address) == 4 else 'AAAA'} {address}" for address in addresses]
    return [f"{name}. {TTL_S} IN CNAME {host.rstrip('.')}." for host in hosts if _HOST.fullmatch(host.rstrip("."))][:1]


def described(view: NameView, records: Sequence[str]) -> list[str]:
    """Return what a person is told of one name."""
    lines = [f"{view.name}  {view.project} in {view.environment}, served by {len(view.nodes)} nodes that are up"]
    lines += [f"  {record}" for record in records] or ["  no node says where visitors reach it"]
    if view.certificate_until_ms:
        lines.append(f"  certificate until {moment(view.certificate_until_ms)}, by {view.certificate_by}")
    if view.problem:
        lines.append(f"  no newer certificate: {view.problem}")
    return lines


def _version(host: str) -> int:
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return 0
