// Winograd's F(4x4, 3x3): the 4x4 outputs of a 3x3 convolution from a 6x6 patch d of its input with 36 multiplications
// in place of 144 (Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016):
//   Y = A' [(G g G') * (B' d B)] A, with * by element. The 36 elements of the products are called frequencies.
// A, B and G follow from six points at which polynomials are multiplied: 0, +-p, +-q and infinity.
#pragma once

#include "vector.h"

namespace adt {
inline namespace ADT_ISA {

constexpr int kOutputTile = 4, kInputTile = 6;  // a side
constexpr int kFrequencies = kInputTile * kInputTile;

// p and q. The errors are less than half of those with the usual 1 and 2, at no cost; and the squares are exact.
constexpr float kP = 0.625f, kQ = 1.5f;

}  // namespace ADT_ISA
}  // namespace adt
