"""The main job: build a lab, drive real requests through its director, judge what happened, and take it down.

`run` returns a `Result`, plain data that `page` draws and ``--json`` prints. A step that fails ends the run with its error in
the result; a signal ends it with `Interrupted`, missing rights with `PermissionError`; nothing of the lab is ever left.
"""

from __future__ import annotations

import time

from pylvs.lab import page, record, sctp
from pylvs.lab.clients import Clients
from pylvs.lab.drive import Drive
from pylvs.lab.life import Lab
from pylvs.lab.process import Failed, Interrupted, Stop
from pylvs.lab.result import Options, Result
from pylvs.lab.topology import Plan


def run(plan: Plan, name: str, options: Options, progress: page.Progress, stop: Stop) -> Result:
    """Run the lab `plan` under the name `name`. Raises `Interrupted` after a signal, everything removed."""
    result = Result(
        name=name,
        method=plan.method,
        title=plan.title,
        vip=plan.vip,
        port=plan.port,
        client=plan.clients or plan.client,
        director=plan.dip,
        kind=plan.kind,
        servers=[{"name": s.name, "address": s.address, "port": s.port} for s in plan.servers],
        notes=list(plan.notes),
    )
    begin = time.monotonic()
    if plan.kind == "sctp" and (why := sctp.missing()):
        result.skipped = why
        return result
    try:
        with record.held(name):
            refuse_kept(name)
            lab = Lab(plan, name, stop, progress.step)
            try:
                lab.up()
                steps = Clients if plan.clients else Drive
                steps(lab, options, progress, stop, result).all()
                if options.keep:
                    lab.keep()
                    result.kept = True
            finally:
                if not result.kept:
                    try:
                        progress.step("taking the lab down")
                    finally:  # even if nobody reads the progress any more
                        lab.down()
    except Failed as failure:
        result.error = str(failure)
    except PermissionError:  # nothing of the lab can be made: no matter for its page
        raise
    except OSError as failure:
        result.error = f"{failure.strerror or failure}" + (f" ({failure.filename})" if failure.filename else "")
    finally:
        progress.close()
    result.seconds = round(time.monotonic() - begin, 2)
    return result


def refuse_kept(name: str) -> None:
    """`Failed` if a lab of this name stands because somebody wants it to."""
    standing = record.read(name)
    if standing and standing.state == "up":
        raise Failed(f"lab {name} is up; take it down first: pylvs lab down {name}")


__all__ = ["Interrupted", "Options", "Result", "refuse_kept", "run"]
