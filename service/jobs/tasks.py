"""The RQ tasks that commits set off: their names, their dotted paths, and how often they are tried.

RQ only carries hints: a job's state in Redis is the truth, and the poller's sweep enqueues again whatever RQ loses. So
every task is safe to run twice.
"""

from __future__ import annotations

from typing import Final

from redis import Redis
from rq.job import Job as RQJob
from rq.job import JobStatus
from rq.serializers import JSONSerializer

ARCHIVE: Final = "archive"
SUBMIT: Final = "submit"
NOTIFY: Final = "notify"  #: of an endpoint, not of a job

#: Task → the function that RQ calls. Each has a queue of its own, so that slow downloads hold up no submission. The RQ
#: job's id is `<task>-<job id>` (RQ job ids hold no colons), which is also how the poller's sweep knows it.
PATHS: Final = {
    ARCHIVE: "workers.archive.store_outputs",
    SUBMIT: "workers.submit.send_order",
    NOTIFY: "workers.notify.deliver",
}

#: Seconds that a pushed task may stay without a sign of life before the sweep looks at it. A running task renews this.
PATIENCE: Final = 60

#: Seconds until the next try, after the first, second… attempt that did not succeed: about a day in all.
ARCHIVE_RETRIES: Final = (2, 5, 15, 30, 60, 120, 300, 600, 1200, *[3600] * 22)

#: The same where more attempts are unlikely to help: the vendor, asked for a fresh link, had none (a result that has
#: only just appeared may need a moment to reach every edge of a CDN), or the file is too large.
SHORT_RETRIES: Final = (2, 5, 15, 60)

#: The same for what has to be done before a job can be sent: an upload, a token. Nothing was ordered by then.
PREPARE_RETRIES: Final = (2, 5, 15, 60, 120, 300, 600)

#: Seconds between looks at the vendor's list for a job that was sent and not answered; then it is the operator's.
LOOKS: Final = (5, 20, 60, 180, 600)

#: Seconds until an event is sent to an endpoint again, as the Standard Webhooks specification has it: 75 hours in all.
DELIVERY_RETRIES: Final = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)

_RESULT_SECONDS: Final = 300
_FAILURE_SECONDS: Final = 7 * 86_400
_TIMEOUT_SECONDS: Final = 6 * 3600


def template(task: str, queue: str) -> list[str]:
    """The hash of a task's RQ job, as flat field, value, … with `%JOB%` and `%NOW%` to fill in.

    Made by RQ's own classes, so that what the commit script writes is what `Queue.enqueue` would have written; only
    the data stays uncompressed (RQ reads both) so that the script can put the job's id in.
    """
    job = RQJob.create(
        PATHS[task],
        args=("%JOB%",),
        id=f"{task}-template",
        connection=Redis(),  # never connected: RQ's classes want one
        serializer=JSONSerializer,
        timeout=_TIMEOUT_SECONDS,
        result_ttl=_RESULT_SECONDS,
        failure_ttl=_FAILURE_SECONDS,
        description=f"{PATHS[task]}('%JOB%')",
        status=JobStatus.QUEUED,
    )
    job.origin = queue
    fields = {name: str(value) for name, value in job.to_dict().items() if name not in ("data", "status")}
    fields |= {
        "data": job.data.decode(),
        "status": JobStatus.QUEUED.value,
        "created_at": "%NOW%",
        "enqueued_at": "%NOW%",
    }
    return [part for field in fields.items() for part in field]
