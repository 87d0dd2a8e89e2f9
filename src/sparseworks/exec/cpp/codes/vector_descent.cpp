// Coordinate descent in a working set, whose inner products are copied side by side; once the signs stay, a Newton step on the
// support ends it: on the orthant the problem is quadratic, so the step, cut where a coordinate reaches 0, never goes up.
#include <algorithm>
#include <limits>
#include <vector>

#include "coordinate.h"
#include "descent.h"

namespace sparseworks::SW_ISA {
namespace {

template <class T, int Kind>
struct Row : Coordinate<T, Kind> {
    using Coordinate<T, Kind>::ridge, Coordinate<T, Kind>::violation, Coordinate<T, Kind>::prox;
    const Descent<T>& a;
    const int64_t row;
    T* z;
    const T scale;
    std::vector<T> g;          // G z - right, of all atoms
    std::vector<int64_t> set;  // the working set, and of it: inner products, gradient, coefficients, slopes
    std::vector<T> h, gradient, x, slope;
    std::vector<int64_t> alive;
    std::vector<T> factor, step, moved_gradient;

    Row(const Descent<T>& given, int64_t r)
        : Coordinate<T, Kind>{static_cast<T>(given.ridge), static_cast<T>(given.gamma)}, a(given), row(r), z(a.z + r * a.atoms),
          scale(a.scale[r]), g(a.atoms) {}

    void start() {
        const T* right = a.right + row * a.atoms;
        for (int64_t j = 0; j < a.atoms; ++j) g[j] = -right[j];
        for (int64_t j = 0; j < a.atoms; ++j) {
            if (z[j] != 0) {
                add(g.data(), a.gram + j * a.atoms, z[j], a.atoms);
                set.push_back(j);
            }
        }
    }

    T worst() const {
        T most = 0;
        const T* slopes = a.slopes;
        for (int64_t j = 0; j < a.atoms; ++j) most = std::max(most, violation(z[j], g[j], scale * slopes[j]));
        return most;
    }

    // Everything alive, and what violates at least half as much as the worst.
    void choose(T most) {
        set.clear();
        for (int64_t j = 0; j < a.atoms; ++j) {
            if (z[j] != 0 || violation(z[j], g[j], scale * a.slopes[j]) >= most / 2) set.push_back(j);
        }
        const int64_t n = set.size();
        h.resize(n * n), gradient.resize(n), x.resize(n), slope.resize(n);
        for (int64_t i = 0; i < n; ++i) {
            const T* from = a.gram + set[i] * a.atoms;
            for (int64_t k = 0; k < n; ++k) h[i * n + k] = from[set[k]];
            gradient[i] = g[set[i]], x[i] = z[set[i]], slope[i] = scale * a.slopes[set[i]];
        }
    }

    // One pass: the worst violation met, whether a sign changed, and whether anything did.
    T pass(bool& changed, bool& moves) {
        const int64_t n = set.size();
        T most = 0;
        for (int64_t i = 0; i < n; ++i) {
            const T curvature = h[i * n + i];
            if (!(curvature > 0)) continue;
            most = std::max(most, violation(x[i], gradient[i], slope[i]));
            const T next = prox(x[i] - gradient[i] / curvature, curvature, slope[i]), moved = next - x[i];
            if (moved == 0) continue;
            moves = true;
            changed |= (next > 0) != (x[i] > 0) || (next < 0) != (x[i] < 0);
            x[i] = next;
            add(gradient.data(), h.data() + i * n, moved, n);
        }
        return most;
    }

    // d = -(H + ridge)^-1 (gradient + slope sign x) on the support; false where it is not positive definite.
    bool newton() {
        alive.clear();
        const int64_t n = set.size();
        for (int64_t i = 0; i < n; ++i) {
            if (x[i] != 0) alive.push_back(i);
        }
        const int64_t s = alive.size();
        if (!s) return true;
        factor.resize(s * s), step.resize(s);
        for (int64_t i = 0; i < s; ++i) {
            T* own = factor.data() + i * s;
            const T* from = h.data() + alive[i] * n;
            const T diagonal = from[alive[i]] + ridge;
            for (int64_t k = 0; k < i; ++k) {
                own[k] = (from[alive[k]] - dot<64 / sizeof(T)>(own, factor.data() + k * s, k)) * factor[k * s + k];
            }
            const T rest = diagonal - dot<64 / sizeof(T)>(own, own, i);
            if (!(rest > 64 * std::numeric_limits<T>::epsilon() * diagonal)) return false;
            own[i] = 1 / std::sqrt(rest);
            const int64_t at = alive[i];
            const T slopes = gradient[at] + ridge * x[at] + std::copysign(slope[at], x[at]);
            step[i] = (-slopes - dot<64 / sizeof(T)>(own, step.data(), i)) * own[i];
        }
        for (int64_t i = s - 1; i >= 0; --i) {
            step[i] *= factor[i * s + i];
            add(step.data(), factor.data() + i * s, -step[i], i);
        }
        if (clipped()) return true;
        T length = 1;
        int64_t first = -1;
        for (int64_t i = 0; i < s; ++i) {
            const T at = x[alive[i]];
            if (at * (at + length * step[i]) < 0) length = -at / step[i], first = i;
        }
        for (int64_t i = 0; i < s; ++i) {
            const int64_t at = alive[i];
            const T next = i == first ? 0 : x[at] + length * step[i];
            add(gradient.data(), h.data() + at * n, next - x[at], n);
            x[at] = next;
        }
        return true;
    }

    // The whole step, with 0 where a sign would change; false, and nothing moves, where that goes up.
    bool clipped() {
        const int64_t n = set.size(), s = alive.size();
        moved_gradient.assign(n, 0);
        T change = 0, bend = 0;
        for (int64_t i = 0; i < s; ++i) {
            const int64_t at = alive[i];
            const T next = x[at] * (x[at] + step[i]) < 0 ? 0 : x[at] + step[i], moved = next - x[at];
            add(moved_gradient.data(), h.data() + at * n, moved, n);
            change += (gradient[at] + ridge * x[at]) * moved + slope[at] * (std::fabs(next) - std::fabs(x[at]));
            bend += ridge * moved * moved;
        }
        const auto moved_at = [&](int64_t i) { return x[alive[i]] * (x[alive[i]] + step[i]) < 0 ? -x[alive[i]] : step[i]; };
        for (int64_t i = 0; i < s; ++i) bend += moved_at(i) * moved_gradient[alive[i]];
        if (!(change + bend / 2 < 0)) return false;
        for (int64_t i = 0; i < s; ++i) {
            const int64_t at = alive[i];
            x[at] = x[at] * (x[at] + step[i]) < 0 ? 0 : x[at] + step[i];
        }
        add(gradient.data(), moved_gradient.data(), T(1), n);
        return true;
    }

    // Descent in the working set until nothing in it violates by more than `goal`; false if nothing moved, as rounding allows no more.
    bool descend(T goal) {
        bool any = false;
        double work = 0, singular = Kind == 2 ? 0 : INFINITY;  // a support of this size had dependent atoms
        for (int64_t pass_number = 1; a.epochs[row] < a.most; ++pass_number) {
            bool changed = false, moves = false;
            const T most = pass(changed, moves);
            ++a.epochs[row];
            any |= moves;
            const double n = set.size(), alive_now = std::count_if(x.begin(), x.end(), [](T v) { return v != 0; });
            if (most <= goal || !moves) break;
            // A factor costs s^3 / 6: a large one waits until the passes since the last have cost a share of that.
            work += n * alive_now;
            if (alive_now < singular && pass_number > 1 && !changed && (alive_now < 64 || 8 * work >= alive_now * alive_now * alive_now)) {
                if (!newton()) singular = alive_now;
                work = 0;
            }
        }
        for (size_t i = 0; i < set.size(); ++i) {
            const T moved = x[i] - z[set[i]];
            if (moved == 0) continue;
            add(g.data(), a.gram + set[i] * a.atoms, moved, a.atoms);
            z[set[i]] = x[i];
        }
        return any;
    }

    void run() {
        start();
        for (T most = worst(); most > a.tolerance[row] && a.epochs[row] < a.most; most = worst()) {
            choose(most);
            if (!descend(std::max(most / 50, a.tolerance[row] / 2))) break;
        }
    }
};

template <class T>
void descend(const Descent<T>& a) {
    dynamic((a.rows + 15) / 16, a.threads, [&](int64_t part) {
        for (int64_t r = part * 16; r < std::min(a.rows, part * 16 + 16); ++r) {
            if (a.kind == 0) Row<T, 0>(a, r).run();
            else if (a.kind == 1) Row<T, 1>(a, r).run();
            else Row<T, 2>(a, r).run();
        }
    });
}

}  // namespace

void descend_single(const DescentSingle& a) { descend(a); }
void descend_double(const DescentDouble& a) { descend(a); }

}  // namespace sparseworks::SW_ISA
