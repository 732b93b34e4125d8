"""Signal detection: how well two states of the world are told apart (d'), and which answer is preferred (criterion)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.stats import norm


@dataclass(frozen=True)
class SignalDetection:
    """Sensitivity and bias of a two-option judgement.

    Attributes:
        d_prime: z(hit rate) - z(false alarm rate); 0 = cannot tell, nan if one of the two states never occurred.
        criterion: -(z(hit rate) + z(false alarm rate)) / 2; negative = prefers the signal answer, nan as above.
        hit_rate: Corrected proportion of signal answers when the signal was there.
        false_alarm_rate: Corrected proportion of signal answers when it was not.
        n_signal: Trials with the signal.
        n_noise: Trials without.
    """

    d_prime: float
    criterion: float
    hit_rate: float
    false_alarm_rate: float
    n_signal: int
    n_noise: int


def signal_detection(hits: int, misses: int, false_alarms: int, correct_rejections: int) -> SignalDetection:
    """d' and criterion c with the log-linear correction, (count + 0.5) / (n + 1), which is applied always.

    Unlike replacing rates of 0 and 1 only when they happen, this correction is defined for every table and less biased
    (Hautus, 1995, Behavior Research Methods 27:46-51; Macmillan & Creelman, 2005, eqs. 1.5 and 2.1).

    Args:
        hits: Signal answers to signal trials.
        misses: Other answers to signal trials.
        false_alarms: Signal answers to the other trials.
        correct_rejections: Other answers to the other trials.

    Raises:
        ValueError: If a count is negative.
    """
    if min(hits, misses, false_alarms, correct_rejections) < 0:
        raise ValueError("counts of hits, misses, false alarms and correct rejections cannot be negative")
    n_signal, n_noise = hits + misses, false_alarms + correct_rejections
    if n_signal == 0 or n_noise == 0:
        # The corrected rate of zero trials is 0.5, which would pass for a measurement.
        return SignalDetection(math.nan, math.nan, math.nan, math.nan, n_signal, n_noise)
    hit_rate = (hits + 0.5) / (n_signal + 1)
    false_alarm_rate = (false_alarms + 0.5) / (n_noise + 1)
    z_hit, z_false = float(norm.ppf(hit_rate)), float(norm.ppf(false_alarm_rate))
    # Rounded, so that an unbiased observer gets 0 and not what is left of it in floating point.
    return SignalDetection(
        z_hit - z_false, round(-(z_hit + z_false) / 2, 12) + 0.0, hit_rate, false_alarm_rate, n_signal, n_noise
    )
