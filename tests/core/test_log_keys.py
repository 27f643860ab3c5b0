"""The log itself tells by which key its checkpoints are signed, and when it was not sealed."""

from tests.core.world import History
from vmorch.core.aggregates.cluster import STREAM, announce_log_key, note_sealing


def test_a_key_is_announced_once_and_then_again_when_it_changes() -> None:
    log = History()
    log.record(STREAM, *announce_log_key(log.fleet.cluster, "cluster+01+first"))
    assert announce_log_key(log.fleet.cluster, "cluster+01+first") == []
    log.record(STREAM, *announce_log_key(log.fleet.cluster, "cluster+02+second"))
    assert log.fleet.cluster.log_key == "cluster+02+second"


def test_that_sealing_stopped_is_noted_until_it_goes_on() -> None:
    log = History()
    assert note_sealing(log.fleet.cluster, None) == []
    log.record(STREAM, *note_sealing(log.fleet.cluster, ("log-changed", "event 7 is another")))
    assert log.fleet.cluster.unsealed is not None
    assert note_sealing(log.fleet.cluster, ("log-changed", "event 7 is another")) == []
    log.record(STREAM, *note_sealing(log.fleet.cluster, None))
    assert log.fleet.cluster.unsealed is None
