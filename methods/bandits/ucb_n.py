"""UCB-N: UCB on all that was observed (Caron et al., 2012, for graph feedback), with information for the count.

Plays the arm with the largest  m_i + sqrt(2 log t / I_i).  It takes for granted that an arm tells about itself: where
the played arm does not, its index does not fall.
"""

from methods.bandits.ucb import Ucb, UcbConfig


class UcbN(Ucb):
    """UCB on all observations, those of side information included."""

    config: UcbConfig
    own_rewards = False
