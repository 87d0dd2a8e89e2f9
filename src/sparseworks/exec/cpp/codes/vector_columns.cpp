// Coordinate descent on the residual of one signal: for few passes over long atoms, whose inner products would cost more. A pass
// over all is followed by passes over what is not 0, as long as these still move.
#include <vector>

#include "coordinate.h"
#include "descent.h"

namespace sparseworks::SW_ISA {
namespace {

template <class T, int Kind>
struct Columns : Coordinate<T, Kind> {
    using Coordinate<T, Kind>::violation, Coordinate<T, Kind>::prox;
    const ColumnDescent<T>& a;
    std::vector<int64_t> alive;

    explicit Columns(const ColumnDescent<T>& given)
        : Coordinate<T, Kind>{static_cast<T>(given.ridge), static_cast<T>(given.gamma)}, a(given) {}

    // The larger of the two, and what is not a number before any number: it must not pass for converged.
    static T larger(T worst, T found) { return found <= worst ? worst : found; }

    // One coordinate: how much it violated, before it moved.
    SW_INLINE T visit(int64_t i) {
        if (!(a.curvature[i] > 0)) return 0;
        const T* atom = a.atoms + a.kept[i] * a.features;
        const T gradient = -dot<256 / sizeof(T)>(atom, a.residual, a.features), at = a.z[i], slope = a.slopes[i];
        const T next = prox(at - gradient / a.curvature[i], a.curvature[i], slope);
        if (next != at) add(a.residual, atom, at - next, a.features);
        a.z[i] = next;
        return violation(at, gradient, slope);
    }

    void run() {
        while (*a.visits < a.most) {
            T worst = 0;
            for (int64_t i = 0; i < a.count; ++i) worst = larger(worst, visit(i));
            *a.visits += a.count;
            *a.done = worst <= a.goal;
            if (*a.done) return;
            alive.clear();
            for (int64_t i = 0; i < a.count; ++i) {
                if (a.z[i] != 0) alive.push_back(i);
            }
            if (10 * alive.size() > 9 * static_cast<size_t>(a.count)) continue;
            for (T most = worst; most > std::max<T>(a.goal, worst / 10) && *a.visits < a.most; *a.visits += alive.size()) {
                most = 0;
                for (int64_t i : alive) most = larger(most, visit(i));
            }
        }
    }
};

template <class T>
void descend(const ColumnDescent<T>& a) {
    if (a.kind == 0) Columns<T, 0>(a).run();
    else if (a.kind == 1) Columns<T, 1>(a).run();
    else Columns<T, 2>(a).run();
}

}  // namespace

void descend_columns_single(const ColumnDescentSingle& a) { descend(a); }
void descend_columns_double(const ColumnDescentDouble& a) { descend(a); }

}  // namespace sparseworks::SW_ISA
