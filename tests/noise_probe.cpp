// Calls the noise formulas of csrc/ directly, where the operators cannot reach: any Philox counter, every radial word.
//
//   noise_probe philox c0 c1 c2 c3 k0 k1   the four words (hexadecimal in and out), scalar then vector
//   noise_probe radial                     over all 2^32 words: non-finite radii, uniforms outside (0, 1], least and
//                                          largest radius
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/tile.h"

using namespace adt;

namespace {

template <class U> uint32_t first_lane(U word) {
  uint32_t lane;
  memcpy(&lane, &word, sizeof lane);
  return lane;
}

// All lanes hold the same counter, so they must hold the same words.
template <class U> int print_philox(const uint32_t (&counter)[4], uint64_t seed) {
  const U zero{};
  const PhiloxWords<U> words =
      philox<U>({{zero + counter[0], zero + counter[1], zero + counter[2], zero + counter[3]}}, seed);
  for (const U& word : words.word) {
    const U same = zero + first_lane(word);
    if (memcmp(&same, &word, sizeof word) != 0) return 1;
    printf("%08x ", first_lane(word));
  }
  printf("\n");
  return 0;
}

template <class V> double sum_of_lanes(V v) {
  double sum = 0;
  for (int lane = 0; lane < kLanes; ++lane) sum += v[lane];
  return sum;
}

int print_radial() {
  Ints not_finite{}, outside{};  // counts in each lane; a true comparison is -1
  Floats least = splat<Floats>(INFINITY), largest{};
  for (uint64_t word = 0; word < (uint64_t{1} << 32); word += kLanes) {
    const Uints words = lane_numbers<Floats>() + static_cast<uint32_t>(word);
    const Floats uniform = unit_uniform(words), radius = box_muller_radius<Floats>(words);
    not_finite -= ~(absolute(radius) <= 3e38f);
    outside -= ~((uniform > 0.0f) & (uniform <= 1.0f));
    least = radius < least ? radius : least;
    largest = radius > largest ? radius : largest;
  }
  for (int lane = 1; lane < kLanes; ++lane) {
    least[0] = least[lane] < least[0] ? least[lane] : least[0];
    largest[0] = largest[lane] > largest[0] ? largest[lane] : largest[0];
  }
  printf("%.0f %.0f %.9g %.9g\n", sum_of_lanes(not_finite), sum_of_lanes(outside), least[0], largest[0]);
  return 0;
}

}  // namespace

int main(int count, char** values) {
  if (count == 2 && !strcmp(values[1], "radial")) return print_radial();
  if (count != 8 || strcmp(values[1], "philox")) return 2;
  uint32_t word[6];
  for (int i = 0; i < 6; ++i) word[i] = static_cast<uint32_t>(strtoul(values[2 + i], nullptr, 16));
  const uint64_t seed = word[4] | static_cast<uint64_t>(word[5]) << 32;
  const uint32_t counter[4] = {word[0], word[1], word[2], word[3]};
  return print_philox<uint32_t>(counter, seed) | print_philox<Uints>(counter, seed);
}
