// A whole layer of an encoder with the norm after each half (BERT): attention, its output, the two layers of the MLP. Lanes
// are tokens from the first product to the last, so that nothing is transposed between them: the sums of one product become,
// scaled and rounded, the input tile of the next; softmax and norm run down the features; a key is broadcast to its queries.
//
// A group is one sequence, or as many short ones as fill a tile; sequences start at multiples of a vector. Every buffer of
// F features holds tile after tile of [F][width].
#include "../activations.h"
#include "fixed.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int64_t kQueries = 2 * W;  // queries whose scores are kept at once

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
        int64_t width = W;
        while (width < left && width < kTokens) width *= 2;
        return {i * kTokens, width};
    }
    int64_t room() const { return tile(tiles() - 1).start + tile(tiles() - 1).width; }
    Slice holding(int64_t lane) const { return tile(lane / kTokens); }
};

// f(std::integral_constant<int, V>) with the number of vectors of a tile.
template <int V = kTokens / W, class F>
void by_width(int64_t width, const F& f) {
    if constexpr (V > 1) {
        if (width < V * W) return by_width<V / 2>(width, f);
    }
    f(std::integral_constant<int, V>{});
}

// x [n][VW] -> cells [n / 2][VW]: every token rounded to +-limit of its largest value, and what a level is worth.
template <int V>
void round_tokens(const Team& team, const float* x, int64_t n, float limit, int32_t* cells, float* scales) {
    constexpr int T = W * V;
    Lanes most[V], inverse[V];
    Ints odd[V];
    each<V>([&](auto v) { most[v] = zero(), odd[v] = Ints{}; });
    for (int64_t k = 0; k < n; ++k) {
        each<V>([&](auto v) {
            const Lanes value = load(x + k * T + W * v);
            most[v] = greater(most[v], absolute(value));
            odd[v] |= value != value;
        });
    }
    each<V>([&](auto v) {
        const Ints finite = (most[v] < INFINITY) & ~odd[v];
        const Ints usable = (most[v] > kTiny) & finite;
        inverse[v] = usable ? limit / most[v] : zero();  // of infinity or NaN: zeros, and a scale of NaN
        store(scales + W * v, finite ? most[v] / limit : all(NAN));
    });
    const int64_t pairs = n / 2, end = pairs * (team.me + 1) / team.parts;
    for (int64_t p = pairs * team.me / team.parts; p < end; ++p) {
        each<V>([&](auto v) {
            const float* at = x + 2 * p * T + W * v;
            store(cells + p * T + W * v, pair(rounded(load(at) * inverse[v]), rounded(load(at + T) * inverse[v])));
        });
    }
}

// For each of this thread's outputs: finish(row, sum * token scale * row scale + bias), a vector at a time.
template <int V, class Finish>
void product(const Team& team, const Matrix& m, const int32_t* cells, const float* scales, int32_t* sums,
             const Finish& finish) {
    constexpr int T = W * V;
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
            const Lanes scale = all(m.scale[first + i]);
            const Lanes bias = m.bias ? all(m.bias[first + i]) : zero();
            each<V>([&](auto v) {
                const Lanes sum = __builtin_convertvector(load(sums + i * T + W * v), Lanes);
                const Lanes y = multiply_add(sum * load(scales + W * v), scale, bias);
                finish((first + i) * T + W * v, y);
            });
        }
    }
}

// (z - mean) / sqrt(variance + eps) * weight + bias down the features; all threads take the sums, each writes its share.
template <int V>
void normalise(const Team& team, const float* z, int64_t n, const Norm& norm, float* to) {
    constexpr int T = W * V;
    Lanes mean[V], inverse[V];
    const Lanes share = all(1.0f / n);
    each<V>([&](auto v) { mean[v] = inverse[v] = zero(); });
    for (int64_t k = 0; k < n; ++k) {
        each<V>([&](auto v) { mean[v] = mean[v] + load(z + k * T + W * v); });
    }
    each<V>([&](auto v) { mean[v] = mean[v] * share; });
    for (int64_t k = 0; k < n; ++k) {
        each<V>([&](auto v) {
            const Lanes d = load(z + k * T + W * v) - mean[v];
            inverse[v] = multiply_add(d, d, inverse[v]);
        });
    }
    each<V>([&](auto v) {
        const Lanes variance = multiply_add(inverse[v], share, all(norm.eps));
        for (int i = 0; i < W; ++i) inverse[v][i] = 1.0f / std::sqrt(variance[i]);
    });
    const int64_t end = n * (team.me + 1) / team.parts;
    for (int64_t k = n * team.me / team.parts; k < end; ++k) {
        const Lanes w = all(norm.weight[k]), b = all(norm.bias[k]);
        each<V>([&](auto v) {
            const Lanes d = load(z + k * T + W * v) - mean[v];
            store(to + k * T + W * v, multiply_add(d * inverse[v], w, b));
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
    void score(const float* key, int64_t stride, const float* query, int64_t q_stride, int64_t j, Lanes (&most)[V]) const {
        Lanes sum[R][V];
        each<R>([&](auto r) { each<V>([&](auto v) { sum[r][v] = zero(); }); });
        for (int64_t d = 0; d < depth; ++d, key += stride, query += q_stride) {
            Lanes lanes[V];
            each<V>([&](auto v) { lanes[v] = load(query + W * v); });
            each<R>([&](auto r) {
                const Lanes one = all(key[r]);
                each<V>([&](auto v) { sum[r][v] = multiply_add(one, lanes[v], sum[r][v]); });
            });
        }
        each<R>([&](auto r) {
            const Lanes bias = mask ? all(mask[j + r]) : zero();
            each<V>([&](auto v) {
                const Lanes s = multiply_add(sum[r][v], all(scale), bias);
                most[v] = greater(most[v], s);
                store(scores + (j + r) * kQueries + W * v, s);
            });
        });
    }

    template <int R, int V>
    void blend(int64_t d, float* to, int64_t to_stride, const Lanes (&inverse)[V]) const {
        Lanes sum[R][V];
        each<R>([&](auto r) { each<V>([&](auto i) { sum[r][i] = zero(); }); });
        by_tile(v, [&](int64_t j, int64_t n, const float* value, int64_t stride) {
            const float *at = value + d * stride, *weight = scores + j * kQueries;
            for (int64_t i = 0; i < n; ++i, ++at, weight += kQueries) {
                Lanes w[V];
                each<V>([&](auto c) { w[c] = load(weight + W * c); });
                each<R>([&](auto r) {
                    const Lanes one = all(at[r * stride]);
                    each<V>([&](auto c) { sum[r][c] = multiply_add(one, w[c], sum[r][c]); });
                });
            }
        });
        each<R>([&](auto r) {
            each<V>([&](auto c) { store(to + (d + r) * to_stride + W * c, sum[r][c] * inverse[c]); });
        });
    }

    // VW queries from `lane` of `tile` on.
    template <int V>
    void queries(const Slice& tile, int64_t lane) const {
        float* query = tile.in(q, width) + first * tile.width + lane - tile.start;
        Lanes most[V], inverse[V];
        each<V>([&](auto i) { most[i] = all(-INFINITY), inverse[i] = zero(); });
        by_tile(k, [&](int64_t j, int64_t n, const float* key, int64_t stride) {
            int64_t i = 0;
            for (; i + 4 <= n; i += 4) score<4, V>(key + i, stride, query, tile.width, j + i, most);
            for (; i < n; ++i) score<1, V>(key + i, stride, query, tile.width, j + i, most);
        });
        each<V>([&](auto i) {  // where every key is hidden, nothing is added
            most[i] = most[i] == -INFINITY ? zero() : most[i];
        });
        for (int64_t j = 0; j < group.tokens; ++j) {
            each<V>([&](auto i) {
                float* at = scores + j * kQueries + W * i;
                const Lanes w = exponential(load(at) - most[i]);
                store(at, w);
                inverse[i] = inverse[i] + w;
            });
        }
        each<V>([&](auto i) {
            inverse[i] = inverse[i] == 0.0f ? zero() : 1.0f / inverse[i];
        });
        int64_t d = 0;
        for (; d + 4 <= depth; d += 4) blend<4, V>(d, query, tile.width, inverse);
        for (; d < depth; ++d) blend<1, V>(d, query, tile.width, inverse);
    }

    void run() const {
        for (int64_t t = 0; t < group.padded;) {
            const Slice tile = group.holding(base + t);
            const bool two = t + 2 * W <= group.padded && (base + t) % kTokens + 2 * W <= tile.width;
            if (two) queries<2>(tile, base + t);
            else queries<1>(tile, base + t);
            t += two ? 2 * W : W;
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

    // body(a vector of lanes, its tokens in x or y, how many there are, its place in a buffer, stride).
    template <class Body>
    void by_lanes(float* to, const Body& body) const {
        for (int64_t lane = W * team.me; lane < group.room(); lane += W * team.parts) {
            const Slice tile = group.holding(lane);
            const int64_t s = lane / group.padded, t = lane % group.padded;
            const int64_t there = s >= group.sequences ? 0 : group.tokens - t < W ? group.tokens - t : W;
            const int64_t token = there ? (group.first + s) * group.tokens + t : 0;
            body(token, there, tile.in(to, a.up.in) + lane - tile.start, tile.width);
        }
    }

    void read() const {
        by_lanes(buffer.x, [&](int64_t token, int64_t there, float* to, int64_t stride) {
            for (int64_t f = 0; f < a.up.in; f += W) {
                transpose(a.x + token * a.up.in + f, a.up.in, there, a.up.in - f, to + f * stride, stride, a.up.in - f, W);
            }
        });
    }

    void write() const {
        by_lanes(buffer.x, [&](int64_t token, int64_t there, const float* from, int64_t stride) {
            for (int64_t f = 0; f < a.up.in && there; f += W) {
                transpose(from + f * stride, stride, a.up.in - f, W, a.y + token * a.up.in + f, a.up.in, there, a.up.in - f);
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
        float scales[W * V];
        team.wait();
        round_tokens<V>(team, tile.in(buffer.x, a.up.in), a.up.in, least(a.q.limit, a.k.limit, a.v.limit), buffer.cells, scales);
        team.wait();
        const auto into = [&](float* to) { return [=](int64_t at, Lanes y) { store(to + at, y); }; };
        product<V>(team, a.q, buffer.cells, scales, sums, into(tile.in(buffer.q, a.q.out)));
        product<V>(team, a.k, buffer.cells, scales, sums, into(tile.in(buffer.k, a.q.out)));
        product<V>(team, a.v, buffer.cells, scales, sums, into(tile.in(buffer.v, a.q.out)));
    }

    // z = W (rounded from) + x, then x = norm(z).
    template <int V>
    void add_and_normalise(const Slice& tile, const Matrix& m, const float* from, int32_t* cells, const Norm& norm) const {
        float scales[W * V];
        float *x = tile.in(buffer.x, a.up.in), *z = tile.in(buffer.z, a.up.in);
        team.wait();
        round_tokens<V>(team, from, m.in, m.limit, cells, scales);
        team.wait();
        product<V>(team, m, cells, scales, sums, [&](int64_t at, Lanes y) { store(z + at, y + load(x + at)); });
        team.wait();
        normalise<V>(team, z, m.out, norm, x);
    }

    template <int V, Activation A>
    void widen(const Slice& tile) const {
        float scales[W * V];
        team.wait();
        round_tokens<V>(team, tile.in(buffer.x, a.up.in), a.up.in, a.up.limit, buffer.cells, scales);
        team.wait();
        product<V>(team, a.up, buffer.cells, scales, sums, [&](int64_t at, Lanes y) { store(buffer.inner + at, activate<A>(y)); });
    }

    template <int V>
    void mlp(const Slice& tile) const {
        if (a.activation == 0) widen<V, Activation::gelu>(tile);
        else if (a.activation == 1) widen<V, Activation::gelu_tanh>(tile);
        else widen<V, Activation::relu>(tile);
        // Alone, a thread may round in place: cell p is written after values 2p and 2p + 1 were read.
        float* beside = buffer.inner + (team.parts > 1 ? kTokens * a.up.out : 0);
        add_and_normalise<V>(tile, a.down, buffer.inner, reinterpret_cast<int32_t*>(beside), a.norm2);
    }

    void run() const {
        read();
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
        write();
        team.wait();
    }
};

}  // namespace

void encoder(const EncoderLayer& a) {
    const int64_t padded = (a.tokens + W - 1) / W * W, together = padded <= kTokens / 2 ? kTokens / padded : 1;
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

}  // namespace sparseworks::SW_ISA
