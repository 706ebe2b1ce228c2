"""What numbers the weights of a model of this family can have, and why the bounds are where they are.

size of a number    error from 65,536: Wan's models, their text encoder and their VAE are all published in FP16 too,
                    whose largest number is 65,504. Warning from 1,024: of trained norms, biases, modulations and
                    scales the demo's largest is 4, and no model here needs a hundred.
                    A norm without any number above 2^-30 is as good as zero. Warning of a modulation from 32: it
                    begins at a few hundredths, and the demo's largest is 1.8.
scales              error where one is zero or below: a scale is the largest absolute value of its row by 448 or
                    127, and converters keep it above zero (LightX2V: the value is taken as 1e-5 at least).
linear weights      root mean square, times scales, which are one where a file has none, and without the largest
                    thirty-second where it is odd: of Wan 14B 0.005 to 0.1, of the demo's 0.07 to 0.15. Error above
                    10, where a layer would make 700 of an input of 1 at Wan's width (scales of ones give 30 to
                    150), and below 1e-9, where BF16 has lost it beside every bias. Warning of a transformer above 1
                    and below 1e-5, ten times and a five hundredth of what is known; a text encoder's are not known.
FP8 without scales  as linear weights, whose scale is one; error of a transformer above 1 already, see cast.py.
form of numbers     weights are of either sign alike (|mean| below 2 % of the root mean square, here 25 %) and many
                    are near zero (a tenth is within an eighth of it). FP8 read as INT8, BF16 read as FP16, and the
                    other way round, are not. Error where the bytes are so as the other format; else a warning,
                    outside of blocks and of a VAE, where kernels may lean to one side, from 70 %.
INT8 codes          warning above 68 of root mean square: bytes by chance have 74, a matrix with a scale a row or
                    fewer 20 to 50.
modulation          begins as random numbers, so none is zero: error where that of every block is, warning of one.
"""

from __future__ import annotations

# Exponents of two.
ABSURD, LARGE, LEAST, LARGE_MODULATION = 16, 10, -30, 5
# Root mean squares: error outside of the first, warning outside of the second; of weights cast to FP8.
POSSIBLE_RMS, USUAL_RMS = (1e-9, 10.0), (1e-5, 1.0)
LARGEST_CAST_RMS = 1.0
MOST_INT8_RMS = 68.0
# |mean| by root mean square, in blocks and outside; what is near zero, by root mean square.
MOST_SKEW, MOST_SKEW_OUTSIDE, NEAR_ZERO = 0.25, 0.7, 0.125
# Of fewer numbers nothing is said about their form, or about their size.
FEWEST, FEWEST_FOR_SIZE = 512, 64
# Of the largest numbers so many are left out where they are odd.
ONE_IN = 32
