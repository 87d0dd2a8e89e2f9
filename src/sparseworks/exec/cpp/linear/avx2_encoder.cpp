// A whole layer of an encoder with the norm after each half (BERT): attention, its output, the two layers of the MLP. Lanes
// are tokens from the first product to the last, so that nothing is transposed between them: the sums of one product become,
// scaled and rounded, the input tile of the next; softmax and norm run down the features; a key is broadcast to its queries.
//
// A group is one sequence, or as many short ones as fill a tile; sequences start at multiples of eight lanes. Every buffer of
// F features holds tile after tile of [F][width].
#include "avx2_fixed.h"
#include "avx2_math.h"

namespace sparseworks::avx2 {
namespace {

constexpr int64_t kQueries = 16;  // queries whose scores are kept at once

SW_INLINE float least(int64_t a, int64_t b, int64_t c) { return static_cast<float>(a < b ? (a < c ? a : c) : b < c ? b : c); }

// The threads that share a group; one that has a group of its own never waits.
struct Team {
    int64_t me, parts;
    void wait() const {
        if (parts > 1) barrier();
    }
};

struct Slice {  // one tile of a group
    int64_t start, width;
    float* in(float* buffer, int64_t features) const { return buffer + start * features; }
};

struct Group {
    int64_t first, sequences, tokens, padded;  // padded: lanes of a sequence

    int64_t lanes() const { return sequences * padded; }
    int64_t tiles() const { return (lanes() + kTokens - 1) / kTokens; }
    Slice tile(int64_t i) const {
        const int64_t left = lanes() - i * kTokens;
        return {i * kTokens, left > 32 ? 64 : left > 16 ? 32 : left > 8 ? 16 : 8};
    }
    int64_t room() const { return tile(tiles() - 1).start + tile(tiles() - 1).width; }
    Slice holding(int64_t lane) const { return tile(lane / kTokens); }
};

template <class F>
void by_width(int64_t width, const F& f) {
    if (width == 64) f(std::integral_constant<int, 8>{});
    else if (width == 32) f(std::integral_constant<int, 4>{});
    else if (width == 16) f(std::integral_constant<int, 2>{});
    else f(std::integral_constant<int, 1>{});
}

// x [n][8V] -> cells [n / 2][8V]: every token rounded to +-limit of its largest value, and what a level is worth.
template <int V>
void round_tokens(const Team& team, const float* x, int64_t n, float limit, int32_t* cells, float* scales) {
    constexpr int T = 8 * V;
    __m256 most[V], odd[V], inverse[V];
    each<V>([&](auto v) { most[v] = odd[v] = _mm256_setzero_ps(); });
    for (int64_t k = 0; k < n; ++k) {
        each<V>([&](auto v) {
            const __m256 value = _mm256_load_ps(x + k * T + 8 * v);
            most[v] = _mm256_max_ps(most[v], absolute(value));
            odd[v] = _mm256_or_ps(odd[v], _mm256_cmp_ps(value, value, _CMP_UNORD_Q));
        });
    }
    each<V>([&](auto v) {
        const __m256 endless = _mm256_cmp_ps(most[v], _mm256_set1_ps(INFINITY), _CMP_NLT_UQ);
        const __m256 bad = _mm256_or_ps(odd[v], endless), level = _mm256_set1_ps(limit);
        const __m256 usable = _mm256_andnot_ps(bad, _mm256_cmp_ps(most[v], _mm256_set1_ps(kTiny), _CMP_GT_OQ));
        inverse[v] = _mm256_and_ps(usable, _mm256_div_ps(level, most[v]));  // of infinity or NaN: zeros, and a scale of NaN
        _mm256_storeu_ps(scales + 8 * v, _mm256_blendv_ps(_mm256_div_ps(most[v], level), _mm256_set1_ps(NAN), bad));
    });
    const int64_t pairs = n / 2, end = pairs * (team.me + 1) / team.parts;
    for (int64_t p = pairs * team.me / team.parts; p < end; ++p) {
        each<V>([&](auto v) {
            const float* at = x + 2 * p * T + 8 * v;
            const __m256i a = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(at), inverse[v]));
            const __m256i b = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_load_ps(at + T), inverse[v]));
            Fixed::store(cells + p * T + 8 * v, _mm256_blend_epi16(a, _mm256_slli_epi32(b, 16), 0xAA));
        });
    }
}

// For each of this thread's outputs: finish(row, sum * token scale * row scale + bias), one vector per eight lanes.
template <int V, class Finish>
void product(const Team& team, const Matrix& m, const int32_t* cells, const float* scales, int32_t* sums,
             const Finish& finish) {
    constexpr int T = 8 * V;
    const Segments s{{nullptr, nullptr, m.bias, 0, m.in, m.out, false, 1}, m.ptr, m.columns, m.values, m.row_of,
                     m.in / 2, m.k_block, m.row_block};
    const int64_t k_blocks = (s.width + s.k_block - 1) / s.k_block, blocks = (m.out + m.row_block - 1) / m.row_block;
    for (int64_t b = team.me; b < blocks; b += team.parts) {
        const int64_t first = b * m.row_block, height = m.out - first < m.row_block ? m.out - first : m.row_block;
        Fetch none;
        for (int64_t kb = 0; kb < k_blocks; ++kb) {
            block<V, false, Fixed>(s, k_blocks, kb, {first, height}, cells + kb * s.k_block * T, sums, none);
        }
        for (int64_t i = 0; i < height; ++i) {
            const __m256 scale = _mm256_broadcast_ss(m.scale + first + i);
            const __m256 bias = m.bias ? _mm256_broadcast_ss(m.bias + first + i) : _mm256_setzero_ps();
            each<V>([&](auto v) {
                const __m256 sum = _mm256_cvtepi32_ps(Fixed::load(sums + i * T + 8 * v));
                const __m256 y = _mm256_fmadd_ps(_mm256_mul_ps(sum, _mm256_loadu_ps(scales + 8 * v)), scale, bias);
                finish((first + i) * T + 8 * v, y);
            });
        }
    }
}

// (z - mean) / sqrt(variance + eps) * weight + bias down the features; all threads take the sums, each writes its share.
template <int V>
void normalise(const Team& team, const float* z, int64_t n, const Norm& norm, float* to) {
    constexpr int T = 8 * V;
    __m256 mean[V], inverse[V];
    const __m256 share = _mm256_set1_ps(1.0f / n);
    each<V>([&](auto v) { mean[v] = inverse[v] = _mm256_setzero_ps(); });
    for (int64_t k = 0; k < n; ++k) {
        each<V>([&](auto v) { mean[v] = _mm256_add_ps(mean[v], _mm256_load_ps(z + k * T + 8 * v)); });
    }
    each<V>([&](auto v) { mean[v] = _mm256_mul_ps(mean[v], share); });
    for (int64_t k = 0; k < n; ++k) {
        each<V>([&](auto v) {
            const __m256 d = _mm256_sub_ps(_mm256_load_ps(z + k * T + 8 * v), mean[v]);
            inverse[v] = _mm256_fmadd_ps(d, d, inverse[v]);
        });
    }
    each<V>([&](auto v) {
        const __m256 variance = _mm256_fmadd_ps(inverse[v], share, _mm256_set1_ps(norm.eps));
        inverse[v] = _mm256_div_ps(_mm256_set1_ps(1.0f), _mm256_sqrt_ps(variance));
    });
    const int64_t end = n * (team.me + 1) / team.parts;
    for (int64_t k = n * team.me / team.parts; k < end; ++k) {
        const __m256 w = _mm256_broadcast_ss(norm.weight + k), b = _mm256_broadcast_ss(norm.bias + k);
        each<V>([&](auto v) {
            const __m256 d = _mm256_sub_ps(_mm256_load_ps(z + k * T + 8 * v), mean[v]);
            _mm256_store_ps(to + k * T + 8 * v, _mm256_fmadd_ps(_mm256_mul_ps(d, inverse[v]), w, b));
        });
    }
}

// One head of one sequence.
struct Head {
    const Group& group;
    int64_t base, first, depth, width;  // first lane, first feature, features of a head, features of the buffers
    float *q, *k, *v;                   // the context takes the place of q
    const float* mask;                  // null, or what is added to the scores of each key
    float scale;
    float* scores;  // [keys][kQueries]

    // body(j, n, pointer to feature `first` of key j in `buffer`, its stride) for keys that lie side by side.
    template <class Body>
    void by_tile(float* buffer, const Body& body) const {
        for (int64_t j = 0; j < group.tokens;) {
            const int64_t lane = base + j, inside = lane % kTokens;
            const Slice tile = group.holding(lane);
            const int64_t left = group.tokens - j, n = left < kTokens - inside ? left : kTokens - inside;
            body(j, n, tile.in(buffer, width) + first * tile.width + inside, tile.width);
            j += n;
        }
    }

    template <int R, int V>
    void score(const float* key, int64_t stride, const float* query, int64_t q_stride, int64_t j, __m256 (&most)[V]) const {
        __m256 sum[R][V];
        each<R>([&](auto r) { each<V>([&](auto v) { sum[r][v] = _mm256_setzero_ps(); }); });
        for (int64_t d = 0; d < depth; ++d, key += stride, query += q_stride) {
            __m256 lanes[V];
            each<V>([&](auto v) { lanes[v] = _mm256_load_ps(query + 8 * v); });
            each<R>([&](auto r) {
                const __m256 one = _mm256_broadcast_ss(key + r);
                each<V>([&](auto v) { sum[r][v] = _mm256_fmadd_ps(one, lanes[v], sum[r][v]); });
            });
        }
        each<R>([&](auto r) {
            const __m256 bias = mask ? _mm256_broadcast_ss(mask + j + r) : _mm256_setzero_ps();
            each<V>([&](auto v) {
                const __m256 s = _mm256_fmadd_ps(sum[r][v], _mm256_set1_ps(scale), bias);
                most[v] = _mm256_max_ps(most[v], s);
                _mm256_store_ps(scores + (j + r) * kQueries + 8 * v, s);
            });
        });
    }

    template <int R, int V>
    void blend(int64_t d, float* to, int64_t to_stride, const __m256 (&inverse)[V]) const {
        __m256 sum[R][V];
        each<R>([&](auto r) { each<V>([&](auto i) { sum[r][i] = _mm256_setzero_ps(); }); });
        by_tile(v, [&](int64_t j, int64_t n, const float* value, int64_t stride) {
            const float *at = value + d * stride, *weight = scores + j * kQueries;
            for (int64_t i = 0; i < n; ++i, ++at, weight += kQueries) {
                __m256 w[V];
                each<V>([&](auto c) { w[c] = _mm256_load_ps(weight + 8 * c); });
                each<R>([&](auto r) {
                    const __m256 one = _mm256_broadcast_ss(at + r * stride);
                    each<V>([&](auto c) { sum[r][c] = _mm256_fmadd_ps(one, w[c], sum[r][c]); });
                });
            }
        });
        each<R>([&](auto r) {
            each<V>([&](auto c) { _mm256_store_ps(to + (d + r) * to_stride + 8 * c, _mm256_mul_ps(sum[r][c], inverse[c])); });
        });
    }

    // 8V queries from `lane` of `tile` on.
    template <int V>
    void queries(const Slice& tile, int64_t lane) const {
        float* query = tile.in(q, width) + first * tile.width + lane - tile.start;
        __m256 most[V], inverse[V];
        each<V>([&](auto i) { most[i] = _mm256_set1_ps(-INFINITY), inverse[i] = _mm256_setzero_ps(); });
        by_tile(k, [&](int64_t j, int64_t n, const float* key, int64_t stride) {
            int64_t i = 0;
            for (; i + 4 <= n; i += 4) score<4, V>(key + i, stride, query, tile.width, j + i, most);
            for (; i < n; ++i) score<1, V>(key + i, stride, query, tile.width, j + i, most);
        });
        each<V>([&](auto i) {  // where every key is hidden, nothing is added
            most[i] = _mm256_and_ps(most[i], _mm256_cmp_ps(most[i], _mm256_set1_ps(-INFINITY), _CMP_NEQ_UQ));
        });
        for (int64_t j = 0; j < group.tokens; ++j) {
            each<V>([&](auto i) {
                float* at = scores + j * kQueries + 8 * i;
                const __m256 w = exponential(_mm256_sub_ps(_mm256_load_ps(at), most[i]));
                _mm256_store_ps(at, w);
                inverse[i] = _mm256_add_ps(inverse[i], w);
            });
        }
        each<V>([&](auto i) {
            const __m256 some = _mm256_cmp_ps(inverse[i], _mm256_setzero_ps(), _CMP_NEQ_UQ);
            inverse[i] = _mm256_and_ps(some, _mm256_div_ps(_mm256_set1_ps(1.0f), inverse[i]));
        });
        int64_t d = 0;
        for (; d + 4 <= depth; d += 4) blend<4, V>(d, query, tile.width, inverse);
        for (; d < depth; ++d) blend<1, V>(d, query, tile.width, inverse);
    }

    void run() const {
        for (int64_t t = 0; t < group.padded;) {
            const Slice tile = group.holding(base + t);
            const bool two = t + 16 <= group.padded && (base + t) % kTokens + 16 <= tile.width;
            if (two) queries<2>(tile, base + t);
            else queries<1>(tile, base + t);
            t += two ? 16 : 8;
        }
    }
};

struct Buffers {
    float *x, *z, *q, *k, *v, *inner;
    int32_t* cells;
    int64_t floats = 0;

    Buffers(const EncoderLayer& a, int64_t room, float* memory) {
        const auto take = [&](int64_t n) {
            float* here = memory ? memory + floats : nullptr;
            floats += (n + 15) / 16 * 16;
            return here;
        };
        x = take(room * a.up.in), z = take(room * a.up.in);
        q = take(room * a.q.out), k = take(room * a.q.out), v = take(room * a.q.out);
        inner = take(kTokens * a.up.out * 3 / 2);  // a tile, and beside it the same as cells
        cells = reinterpret_cast<int32_t*>(take(kTokens * (a.up.in > a.q.out ? a.up.in : a.q.out) / 2));
    }
};

struct Layer {
    const EncoderLayer& a;
    const Group group;
    const Team team;
    const Buffers buffer;
    int32_t* sums;
    float* scores;

    // body(vector of eight lanes, its tokens in x or y, how many there are, its place in a buffer, stride).
    template <class Body>
    void by_lanes(float* to, const Body& body) const {
        for (int64_t lane = 8 * team.me; lane < group.room(); lane += 8 * team.parts) {
            const Slice tile = group.holding(lane);
            const int64_t s = lane / group.padded, t = lane % group.padded;
            const int64_t there = s >= group.sequences ? 0 : group.tokens - t < 8 ? group.tokens - t : 8;
            const int64_t token = there ? (group.first + s) * group.tokens + t : 0;
            body(token, there, tile.in(to, a.up.in) + lane - tile.start, tile.width);
        }
    }

    void load() const {
        by_lanes(buffer.x, [&](int64_t token, int64_t there, float* to, int64_t stride) {
            for (int64_t f = 0; f < a.up.in; f += 8) {
                transpose_block(a.x + token * a.up.in + f, a.up.in, there, a.up.in - f, to + f * stride, stride, a.up.in - f, 8);
            }
        });
    }

    void store() const {
        by_lanes(buffer.x, [&](int64_t token, int64_t there, const float* from, int64_t stride) {
            for (int64_t f = 0; f < a.up.in && there; f += 8) {
                transpose_block(from + f * stride, stride, a.up.in - f, 8, a.y + token * a.up.in + f, a.up.in, there, a.up.in - f);
            }
        });
    }

    void attend() const {
        const int64_t depth = a.q.out / a.heads;
        for (int64_t i = team.me; i < group.sequences * a.heads; i += team.parts) {
            const int64_t s = i / a.heads, h = i % a.heads;
            const float* mask = a.mask ? a.mask + (group.first + s) * group.tokens : nullptr;
            Head{group, s * group.padded, h * depth, depth, a.q.out, buffer.q, buffer.k, buffer.v, mask, a.scale, scores}.run();
        }
    }

    template <int V>
    void project(const Slice& tile) const {
        alignas(32) float scales[8 * V];
        team.wait();
        round_tokens<V>(team, tile.in(buffer.x, a.up.in), a.up.in, least(a.q.limit, a.k.limit, a.v.limit), buffer.cells, scales);
        team.wait();
        const auto into = [&](float* to) { return [=](int64_t at, __m256 y) { _mm256_store_ps(to + at, y); }; };
        product<V>(team, a.q, buffer.cells, scales, sums, into(tile.in(buffer.q, a.q.out)));
        product<V>(team, a.k, buffer.cells, scales, sums, into(tile.in(buffer.k, a.q.out)));
        product<V>(team, a.v, buffer.cells, scales, sums, into(tile.in(buffer.v, a.q.out)));
    }

    // z = W (rounded from) + x, then x = norm(z).
    template <int V>
    void add_and_normalise(const Slice& tile, const Matrix& m, const float* from, int32_t* cells, const Norm& norm) const {
        alignas(32) float scales[8 * V];
        float *x = tile.in(buffer.x, a.up.in), *z = tile.in(buffer.z, a.up.in);
        team.wait();
        round_tokens<V>(team, from, m.in, m.limit, cells, scales);
        team.wait();
        product<V>(team, m, cells, scales, sums, [&](int64_t at, __m256 y) { _mm256_store_ps(z + at, _mm256_add_ps(y, _mm256_load_ps(x + at))); });
        team.wait();
        normalise<V>(team, z, m.out, norm, x);
    }

    template <int V, class Activation>
    void widen(const Slice& tile, const Activation& activation) const {
        alignas(32) float scales[8 * V];
        team.wait();
        round_tokens<V>(team, tile.in(buffer.x, a.up.in), a.up.in, a.up.limit, buffer.cells, scales);
        team.wait();
        product<V>(team, a.up, buffer.cells, scales, sums, [&](int64_t at, __m256 y) { _mm256_store_ps(buffer.inner + at, activation(y)); });
    }

    template <int V>
    void mlp(const Slice& tile) const {
        if (a.activation == 0) widen<V>(tile, [](__m256 y) { return gelu(y); });
        else if (a.activation == 1) widen<V>(tile, [](__m256 y) { return gelu_tanh(y); });
        else widen<V>(tile, [](__m256 y) { return relu(y); });
        // Alone, a thread may round in place: cell p is written after values 2p and 2p + 1 were read.
        float* beside = buffer.inner + (team.parts > 1 ? kTokens * a.up.out : 0);
        add_and_normalise<V>(tile, a.down, buffer.inner, reinterpret_cast<int32_t*>(beside), a.norm2);
    }

    void run() const {
        load();
        for (int64_t i = 0; i < group.tiles(); ++i) by_width(group.tile(i).width, [&](auto v) { project<v>(group.tile(i)); });
        team.wait();
        attend();
        for (int64_t i = 0; i < group.tiles(); ++i) {
            const Slice tile = group.tile(i);
            by_width(tile.width, [&](auto v) {
                add_and_normalise<v>(tile, a.o, tile.in(buffer.q, a.q.out), buffer.cells, a.norm1);
                mlp<v>(tile);
            });
        }
        team.wait();
        store();
        team.wait();
    }
};

}  // namespace

void encoder(const EncoderLayer& a) {
    const int64_t padded = (a.tokens + 7) / 8 * 8, together = padded <= kTokens / 2 ? kTokens / padded : 1;
    const auto group = [&](int64_t i) {
        const int64_t first = i * together, left = a.batch - first;
        return Group{first, left < together ? left : together, a.tokens, padded};
    };
    const int64_t room = group(0).room(), shared = Buffers(a, room, nullptr).floats, sums = kTokens * 256;
    teams(
        (a.batch + together - 1) / together, a.threads, shared, sums + kQueries * a.tokens,
        [](int64_t n) {
            static thread_local Scratch scratch;
            return scratch.floats(n);
        },
        [&](int64_t i, int64_t me, int64_t parts, float* common, float* own) {
            Layer{a, group(i), {me, parts}, Buffers(a, room, common), reinterpret_cast<int32_t*>(own), own + sums}.run();
        });
}

}  // namespace sparseworks::avx2
