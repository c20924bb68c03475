"How long something takes, for tests: what else runs beside it must not make one fail."
import time


def seconds(call, times=3):
    "Seconds of this thread, the best of `times`: another test's server, the collector after it or a busy machine are not `call`'s."
    found = []
    for _ in range(times):
        begin = time.thread_time()
        call()
        found.append(time.thread_time() - begin)
    return min(found)
