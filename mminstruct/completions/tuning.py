"""The numbers of a `Limiter`, each with its unit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a limiter goes by, found by simulating servers of many kinds.

    Seconds end in ``_s``, rates a second in ``_per_s``, times between two numbers are pairs; the
    rest are requests, or shares and factors of what the comment names.
    """

    # The search: both bounds double, the window with each usual latency (within bounds).
    start_in_flight: float = 64.0
    start_per_s: float = 100.0
    pace_doubles_s: float = 0.5
    window_doubles_s: tuple[float, float] = (0.25, 60.0)
    sent_at_once_s: float = 0.05  # what the pace lets out in it may go together

    # The curve: from a depth below what is known to it, and as much beyond in the same time again.
    curve_depth: float = 0.12
    curve_guess: float = 0.7  # of its way, where to begin about a mere guess
    curve_requests: float = 50.0  # it takes as long as these,
    curve_pauses: float = 8.0  # and at least so many times what a refusal costs,
    curve_pauses_first: float = 20.0  # more after the first, which tells least,
    curve_s: float = 0.7  # and never less.

    # What a refusal tells.
    first_share: float = 0.95  # of what was sent in the second before the first one
    least_first_per_s: float = 10.0
    share: float = 0.98  # of what seems to be taken; a refusal without Retry-After costs more
    share_told: float = 0.99  # the same, with Retry-After
    telling: int = 6  # fewer accepted since the last one tell nothing, or after several little
    least_cut: float = 0.5  # of the pace, by a refusal that tells little
    sent_kept: int = 1500
    longest_pause_s: float = 60.0  # of our own choosing

    # A trial: after quick refusals more is sent, to see whether they have a reason.
    quick: int = 3  # refusals before it
    untried: int = 20  # refusals before one in any case; one that has failed doubles them
    trial: float = 3.0  # times as much is sent,
    trial_least: float = 20.0  # and so many in a Retry-After, or pauses would hide what is taken
    worth: float = 1.3  # times as much has to be taken, for refusals to have no reason,
    left: int = 4  # and so many more, which may have been left of an allowance
    trial_ends: int = 10  # refusals that end an undecided one
    trial_sent: int = 1000  # requests that do

    # A spell: refusals without a reason bound nothing, until clearly more are refused.
    spell: int = 20  # refusals after which it is looked at again
    more: float = 0.15  # of all requests may be refused than before,
    mostly: float = 0.5  # but of all no more than this
    in_a_row: int = 3  # without a pause
    least_search: float = 16.0  # in flight, after a trial that found no reason

    # What latencies and failures tell.
    strain: float = 2.0  # timeouts and the like that shrink the window
    strain_kept: float = 0.95  # of it after each answer
    slower: float = 2.0  # times the best median latency is too slow,
    hardly_s: float = 0.2  # if it is more than so much above it
    least_answers: int = 16  # for a median
    least_window: float = 4.0
    shrunk: float = 0.7  # of what is in flight is the window when it shrinks

    # Servers that are left out.
    dead_after: int = 3  # failures in a row
    probe_s: tuple[float, float] = (1.0, 30.0)  # between probes: at first, doubling, at most


def bounded(value: float, bounds: tuple[float, float]) -> float:
    """The value, or the bound that it exceeds."""
    return min(max(value, bounds[0]), bounds[1])
