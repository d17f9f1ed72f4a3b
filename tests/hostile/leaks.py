"""Real traffic, good and bad, with Redis dying in between; then every output is searched for every secret."""

from __future__ import annotations

from contextlib import ExitStack, suppress

from tests.support.processes import eventually

from .outputs import Outputs
from .play import FAULTS, Play
from .stage import Result, Stage


def run(stage: Stage) -> Result:
    result = Result()
    with ExitStack() as stack:
        play = Play(stage, stack)
        with play.subscribed():
            stage.say("submissions with faults")
            play.submissions(FAULTS[: stage.of(len(FAULTS), 2)])
            stage.say("callbacks that quote their own URL, and errors")
            urls = play.quotations()
            play.errors(urls)
            stage.say("no Redis")
            play.without_redis(urls)
            stage.say("what becomes of it all")
            with suppress(AssertionError):  # some are stuck by design
                eventually(lambda: not play.unsettled(), timeout=stage.of(25.0, 2.0))
            play.read(list(play.jobs))
        play.stored()
        for process in play.processes:
            play.outputs.add(f"the log of {process.log.stem}", process.output().encode())
        _tell(play, result)
    return result


def _tell(play: Play, result: Result) -> None:
    pieces, outputs = play.known.pieces(play.jobs), play.outputs
    found = outputs.searched(pieces)
    logged = sum(process.output().count("\n") for process in play.processes)
    places = f"{outputs.answers:,} answers, {logged:,} lines of logs, {len(play.web.events())} events, all of Redis"
    result.note(f"{len(play.jobs)} jobs; {places}: {outputs.size / 2**20:.1f} MB")
    result.note(f"{len(set(pieces.values()))} secrets looked for: {len(found)} found", fine=not found)
    result.faults += found[:10]
    letters, refused = len(play.web.letters()), play.web.process.output().count('"http_status":503')
    control = Outputs()
    control.add("a control", b"..." + next(iter(pieces)) + b"...")
    happened = letters > 0 and refused > 0 and bool(control.searched(pieces))
    result.note(f"{letters} callbacks in quarantine, {refused} refused while Redis was away", fine=happened)
