// Cholesky factors that grow by a row, one a signal: lanes are signals, so that no sum crosses lanes and no solve waits for another.
#include "../simd.h"
#include "cholesky.h"

namespace sparseworks::SW_ISA {
namespace {

constexpr int G = kSignals, V = G / W;

SW_INLINE float* row_of(const Factors& a, int64_t group, int64_t row) {
    return a.factor + (group * a.most * (a.most + 1) / 2 + row * (row + 1) / 2) * G;
}

// x -= sum_i row[i] w[i]; four sums at a time hide the latency of the multiply-add.
SW_INLINE void subtract(Lanes (&x)[V], const float* row, const float* w, int64_t n) {
    Lanes more[3][V] = {};
    int64_t i = 0;
    for (; i + 4 <= n; i += 4, row += 4 * G, w += 4 * G) {
        each<V>([&](auto v) {
            x[v] -= load(row + v * W) * load(w + v * W);
            each<3>([&](auto u) {
                more[u][v] -= load(row + (u + 1) * G + v * W) * load(w + (u + 1) * G + v * W);
            });
        });
    }
    for (; i < n; ++i, row += G, w += G) {
        each<V>([&](auto v) { x[v] -= load(row + v * W) * load(w + v * W); });
    }
    each<V>([&](auto v) { x[v] += more[0][v] + (more[1][v] + more[2][v]); });
}

// w[j] = G[chosen_j, added] of each signal, 0 where either is missing.
void gather(const Append& a, int64_t group, float* w) {
    const int32_t* chosen = a.chosen + group * a.most * G;
    for (int64_t lane = 0; lane < G; ++lane) {
        const int64_t b = group * G + lane, added = b < a.signals ? a.added[b] : -1;
        const float* row = a.gram + (added < 0 ? 0 : added * a.atoms);
        for (int64_t j = 0; j < a.size; ++j) {
            const int32_t c = chosen[j * G + lane];
            w[j * G + lane] = added < 0 || c < 0 ? 0.0f : row[c];
        }
    }
}

void append(const Append& a, int64_t group, float* w) {
    gather(a, group, w);
    float* known = a.known + group * a.most * G;
    Lanes pivot[V], value[V];
    each<V>([&](auto v) { pivot[v] = value[v] = zero(); });
    for (int64_t j = 0; j < a.size; ++j) {
        const float* row = row_of(a, group, j);
        Lanes x[V];
        each<V>([&](auto v) { x[v] = load(w + j * G + v * W); });
        subtract(x, row, w, j);
        each<V>([&](auto v) { store(w + j * G + v * W, x[v] * load(row + j * G + v * W)); });
    }
    subtract(pivot, w, w, a.size);
    subtract(value, w, known, a.size);
    float left[G], sum[G];
    each<V>([&](auto v) { store(left + v * W, pivot[v]), store(sum + v * W, value[v]); });
    float* row = row_of(a, group, a.size);
    int32_t* chosen = a.chosen + (group * a.most + a.size) * G;
    for (int64_t i = 0; i < a.size * G; ++i) row[i] = w[i];
    for (int64_t lane = 0; lane < G; ++lane) {
        const int64_t b = group * G + lane, added = b < a.signals ? a.added[b] : -1;
        const float own = added < 0 ? 0.0f : a.gram[added * a.atoms + added], rest = own + left[lane];
        const bool grows = added >= 0 && rest > a.least * own && rest < INFINITY;
        const float inverse = grows ? 1.0f / std::sqrt(rest) : 1.0f;
        if (!grows) {  // a row of the identity, whose coefficient is 0
            for (int64_t i = 0; i < a.size; ++i) row[i * G + lane] = 0;
        }
        row[a.size * G + lane] = inverse;
        known[a.size * G + lane] = grows ? (a.right[b * a.atoms + added] + sum[lane]) * inverse : 0.0f;
        chosen[lane] = grows ? static_cast<int32_t>(added) : -1;
        if (b < a.signals) a.grown[b] = grows;
    }
}

void solve(const Solve& a, int64_t group, float* z) {
    const float* known = a.known + group * a.most * G;
    for (int64_t i = 0; i < a.size * G; ++i) z[i] = known[i];
    for (int64_t j = a.size - 1; j >= 0; --j) {
        const float* row = row_of(a, group, j);
        Lanes x[V];
        each<V>([&](auto v) {
            x[v] = load(z + j * G + v * W) * load(row + j * G + v * W);
            store(z + j * G + v * W, x[v]);
        });
        for (int64_t i = 0; i < j; ++i) {
            each<V>([&](auto v) {
                const int64_t at = i * G + v * W;
                store(z + at, load(z + at) - load(row + at) * x[v]);
            });
        }
    }
    const int64_t lanes = a.signals - group * G < G ? a.signals - group * G : G;
    for (int64_t lane = 0; lane < lanes; ++lane) {
        float* out = a.out + (group * G + lane) * a.size;
        for (int64_t j = 0; j < a.size; ++j) out[j] = z[j * G + lane];
    }
}

template <class Arguments, class Body>
void groups(const Arguments& a, const Body& body) {
    split((a.signals + G - 1) / G, a.threads, a.signals * a.size * a.size / 2, [&](int64_t begin, int64_t end) {
        thread_local Scratch scratch;
        float* room = scratch.floats((a.most + 1) * G);
        for (int64_t g = begin; g < end; ++g) body(a, g, room);
    });
}

}  // namespace

void cholesky_append(const Append& a) {
    groups(a, [](const Append& b, int64_t g, float* w) { append(b, g, w); });
}

void cholesky_solve(const Solve& a) {
    groups(a, [](const Solve& b, int64_t g, float* z) { solve(b, g, z); });
}

}  // namespace sparseworks::SW_ISA
