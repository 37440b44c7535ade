#pragma once
// Type erasure at the edge: how a model holds layers of different methods chosen by name at run time. AnyAdapter is itself
// an Adapter, so what takes a typed adapter takes it unchanged, to the same bits.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "deltaw/base/base_ref.hpp"
#include "deltaw/core/adapter.hpp"
#include "deltaw/core/rank.hpp"

namespace deltaw {

template <class P, class B, class Act = P>
class AnyAdapter {
 public:
  using Scalar = P;
  using Activation = Act;
  using Backend = B;
  using Space = typename B::Space;
  using Context = typename B::Context;
  using Base = BaseRef<Act, P, B>;
  using Param = Parameter<P, Space>;
  static constexpr std::string_view method = "any";

  /// Holds the Saved of whichever adapter it was last used with; made at first use and then reused. It moves only: a copy
  /// would share what a call leaves for its backward.
  struct Saved {
    Call call;
    std::unique_ptr<void, void (*)(void*)> held{nullptr, [](void*) {}};
    const void* type = nullptr;
  };

  template <class A>
  requires(!std::is_same_v<std::remove_cvref_t<A>, AnyAdapter> && Adapter<std::remove_cvref_t<A>>)
      AnyAdapter(A&& adapter)
      : self_(std::make_unique<Model<std::remove_cvref_t<A>>>(std::forward<A>(adapter))) {}
  AnyAdapter(const AnyAdapter& other) : self_(other.self_->clone()) {}
  AnyAdapter& operator=(const AnyAdapter& other) {
    self_ = other.self_->clone();
    return *this;
  }
  AnyAdapter(AnyAdapter&&) noexcept = default;
  AnyAdapter& operator=(AnyAdapter&&) noexcept = default;

  void forward(Context& ctx, const Base& base, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> y,
               Saved& saved) const {
    self_->forward(ctx, base, x, y, saved);
  }
  void backward(Context& ctx, const Base& base, ConstMatrixView<Act, Space> x, MatrixView<Act, Space> dy,
                MatrixView<Act, Space> dx, Saved& saved) {
    self_->backward(ctx, base, x, dy, dx, saved);
  }
  void backward_input(Context& ctx, const Base& base, MatrixView<Act, Space> dx, Saved& saved) const {
    self_->backward_input(ctx, base, dx, saved);
  }
  /// The initial values of the method's paper, for methods that have others than LoRA's; says whether this is one.
  bool initialize(Context& ctx, std::uint64_t seed) { return self_->initialize(ctx, seed); }
  void attach(Context& ctx, const Base& base) { self_->attach(ctx, base); }
  void prepare(Context& ctx, const Base& base) { self_->prepare(ctx, base); }
  void finish(Context& ctx, const Base& base) { self_->finish(ctx, base); }

  /// The hooks for all layers of one method together: throws UnsupportedError where they are of more than one.
  static void begin_step(Context& ctx, std::span<AnyAdapter* const> layers, const StepInfo& step) {
    if (check_group(layers)) layers.front()->self_->begin_step(ctx, layers, step);
  }
  static void regularize(Context& ctx, std::span<AnyAdapter* const> layers, MatrixView<P, Space> loss = {}) {
    if (check_group(layers)) layers.front()->self_->regularize(ctx, layers, loss);
  }
  static void after_step(Context& ctx, std::span<AnyAdapter* const> layers, const StepInfo& step) {
    if (check_group(layers)) layers.front()->self_->after_step(ctx, layers, step);
  }

  /// The plain low-rank pair of methods that are one; nothing for the rest.
  std::optional<Pair<P, Space>> pair() { return self_->pair(); }
  bool can_scale() const { return self_->can_scale(); }
  bool can_merge() const { return self_->can_merge(); }
  bool can_resize_rank() const { return self_->can_resize_rank(); }
  bool trains_base() const { return self_->trains_base(); }
  double scale() const { return self_->scale(); }
  void set_scale(double scale) { self_->set_scale(scale); }
  /// See core/rank.hpp.
  void resize_rank(Context& ctx, std::span<const index_t> keep, index_t fresh) { self_->resize_rank(ctx, keep, fresh); }
  void delta_weight(Context& ctx, const Base& base, MatrixView<P, Space> out) const {
    self_->delta_weight(ctx, base, out);
  }
  void merge(Context& ctx, const Base& base, MatrixView<Act, Space> w, MatrixView<Act, Space> b = {}) const {
    self_->merge(ctx, base, w, b);
  }
  void unmerge(Context& ctx, const Base& base, MatrixView<Act, Space> w, MatrixView<Act, Space> b = {}) const {
    self_->unmerge(ctx, base, w, b);
  }
  /// Throws what `unmerge` would; nothing for methods that can always give W back. It may wait for the device.
  void check_unmerge(Context& ctx) const { self_->check_unmerge(ctx); }
  void bind_weight(Context& ctx, MatrixView<Act, Space> w, MatrixView<Act, Space> b) { self_->bind_weight(ctx, w, b); }

  template <class F>
  void for_each_parameter(F&& f) {
    using Visitor = std::remove_reference_t<F>;
    self_->for_each_parameter(const_cast<void*>(static_cast<const void*>(&f)),
                              [](void* visitor, Param& p) { (*static_cast<Visitor*>(visitor))(p); });
  }
  template <class F>
  void for_each_parameter(F&& f) const {
    using Visitor = std::remove_reference_t<F>;
    self_->for_each_parameter(const_cast<void*>(static_cast<const void*>(&f)), [](void* visitor, Param& p) {
      (*static_cast<Visitor*>(visitor))(static_cast<const Param&>(p));
    });
  }

  LinearShape shape() const { return self_->shape(); }
  bool reads_input_in_backward() const { return self_->reads_input_in_backward(); }
  std::string_view method_name() const { return self_->method_name(); }
  /// What tells this layer's random numbers from those of others with the same seed; 0 for methods without.
  std::uint64_t layer() const { return self_->layer(); }
  /// Of what is frozen, random and not saved, see Nola; 0 for methods without.
  std::uint64_t basis_digest() const { return self_->basis_digest(); }
  /// The typed adapter inside, or null if it is of another type.
  template <class A>
  A* get() {
    return self_->type() == type_id<A>() ? &static_cast<Model<A>*>(self_.get())->adapter : nullptr;
  }
  template <class A>
  const A* get() const {
    return self_->type() == type_id<A>() ? &static_cast<const Model<A>*>(self_.get())->adapter : nullptr;
  }

 private:
  using VisitParameter = void (*)(void*, Param&);

  static bool check_group(std::span<AnyAdapter* const> layers) {
    for (const AnyAdapter* layer : layers)
      if (layer->self_->type() != layers.front()->self_->type())
        raise<UnsupportedError>("AnyAdapter", std::string("layers: got methods '")
                                                  .append(layers.front()->method_name())
                                                  .append("' and '")
                                                  .append(layer->method_name())
                                                  .append("' together, want layers of one method"));
    return !layers.empty();
  }

  // An address per type stands for RTTI, which users may have switched off.
  template <class A>
  static const void* type_id() {
    static const char id = 0;
    return &id;
  }

  struct Concept {
    virtual ~Concept() = default;
    virtual std::unique_ptr<Concept> clone() const = 0;
    virtual const void* type() const = 0;
    virtual void forward(Context&, const Base&, ConstMatrixView<Act, Space>, MatrixView<Act, Space>, Saved&) const = 0;
    virtual void backward(Context&, const Base&, ConstMatrixView<Act, Space>, MatrixView<Act, Space>,
                          MatrixView<Act, Space>, Saved&) = 0;
    virtual void backward_input(Context&, const Base&, MatrixView<Act, Space>, Saved&) const = 0;
    virtual bool initialize(Context&, std::uint64_t) = 0;
    virtual void attach(Context&, const Base&) = 0;
    virtual void prepare(Context&, const Base&) = 0;
    virtual void finish(Context&, const Base&) = 0;
    virtual void begin_step(Context&, std::span<AnyAdapter* const>, const StepInfo&) = 0;
    virtual void regularize(Context&, std::span<AnyAdapter* const>, MatrixView<P, Space>) = 0;
    virtual void after_step(Context&, std::span<AnyAdapter* const>, const StepInfo&) = 0;
    virtual std::optional<Pair<P, Space>> pair() = 0;
    virtual bool can_scale() const = 0;
    virtual bool can_merge() const = 0;
    virtual bool can_resize_rank() const = 0;
    virtual bool trains_base() const = 0;
    virtual double scale() const = 0;
    virtual void set_scale(double) = 0;
    virtual void resize_rank(Context&, std::span<const index_t>, index_t) = 0;
    virtual void delta_weight(Context&, const Base&, MatrixView<P, Space>) const = 0;
    virtual void merge(Context&, const Base&, MatrixView<Act, Space>, MatrixView<Act, Space>) const = 0;
    virtual void unmerge(Context&, const Base&, MatrixView<Act, Space>, MatrixView<Act, Space>) const = 0;
    virtual void check_unmerge(Context&) const = 0;
    virtual void bind_weight(Context&, MatrixView<Act, Space>, MatrixView<Act, Space>) = 0;
    virtual void for_each_parameter(void* visitor, VisitParameter visit) = 0;
    virtual LinearShape shape() const = 0;
    virtual bool reads_input_in_backward() const = 0;
    virtual std::string_view method_name() const = 0;
    virtual std::uint64_t layer() const = 0;
    virtual std::uint64_t basis_digest() const = 0;
  };

  // One row a member; an optional capability that the method lacks raises UnsupportedError, which names both.
  template <class A>
  struct Model final : Concept {
    A adapter;
    explicit Model(A a) : adapter(std::move(a)) {}

    using X = ConstMatrixView<Act, Space>;
    using Y = MatrixView<Act, Space>;

    std::unique_ptr<Concept> clone() const override { return std::make_unique<Model>(adapter); }
    const void* type() const override { return type_id<A>(); }
    void forward(Context& ctx, const Base& base, X x, Y y, Saved& saved) const override {
      adapter.forward(ctx, base, x, y, typed(saved));
    }
    void backward(Context& ctx, const Base& base, X x, Y dy, Y dx, Saved& saved) override {
      adapter.backward(ctx, base, x, dy, dx, typed(saved));
    }
    void backward_input(Context& ctx, const Base& base, Y dx, Saved& saved) const override {
      adapter.backward_input(ctx, base, dx, typed(saved));
    }
    bool initialize([[maybe_unused]] Context& ctx, [[maybe_unused]] std::uint64_t seed) override {
      if constexpr (requires { adapter.initialize(ctx, seed); }) return adapter.initialize(ctx, seed), true;
      return false;
    }
    void attach(Context& ctx, const Base& base) override { deltaw::attach(ctx, adapter, base); }
    void prepare(Context& ctx, const Base& base) override { deltaw::prepare(ctx, adapter, base); }
    void finish(Context& ctx, const Base& base) override { deltaw::finish(ctx, adapter, base); }
    void begin_step(Context& ctx, std::span<AnyAdapter* const> layers, const StepInfo& step) override {
      deltaw::begin_step<A>(ctx, typed_group(layers), step);
    }
    void regularize(Context& ctx, std::span<AnyAdapter* const> layers, MatrixView<P, Space> loss) override {
      deltaw::regularize<A>(ctx, typed_group(layers), loss);
    }
    void after_step(Context& ctx, std::span<AnyAdapter* const> layers, const StepInfo& step) override {
      deltaw::after_step<A>(ctx, typed_group(layers), step);
    }
    std::optional<Pair<P, Space>> pair() override {
      if constexpr (requires { adapter.pair(); }) return adapter.pair();
      return std::nullopt;
    }
    bool can_scale() const override {
      return requires(A & a) { a.set_scale(1.0); };
    }
    bool can_merge() const override {
      return requires(const A& a, Context& ctx, const Base& base, Y w) { a.merge(ctx, base, w, w); };
    }
    bool can_resize_rank() const override {
      return requires(A & a) { a.rank_resized(); };
    }
    bool trains_base() const override { return deltaw::trains_base(adapter); }
    double scale() const override {
      if constexpr (requires { adapter.scale(); }) return adapter.scale();
      missing("scale");
    }
    void set_scale(double scale) override {
      if constexpr (requires { adapter.set_scale(scale); }) return adapter.set_scale(scale);
      missing("set_scale");
    }
    void resize_rank(Context& ctx, std::span<const index_t> keep, index_t fresh) override {
      deltaw::resize_rank(ctx, adapter, keep, fresh);
    }
    void delta_weight(Context& ctx, const Base& base, MatrixView<P, Space> out) const override {
      if constexpr (requires { adapter.delta_weight(ctx, base, out); }) return adapter.delta_weight(ctx, base, out);
      missing("delta_weight");
    }
    void merge(Context& ctx, const Base& base, Y w, Y b) const override {
      if constexpr (requires { adapter.merge(ctx, base, w, b); }) return adapter.merge(ctx, base, w, b);
      missing("merge");
    }
    void unmerge(Context& ctx, const Base& base, Y w, Y b) const override {
      if constexpr (requires { adapter.unmerge(ctx, base, w, b); }) return adapter.unmerge(ctx, base, w, b);
      missing("unmerge");
    }
    void check_unmerge([[maybe_unused]] Context& ctx) const override {
      if constexpr (requires { adapter.check_unmerge(ctx); }) adapter.check_unmerge(ctx);
    }
    void bind_weight(Context& ctx, Y w, Y b) override {
      if constexpr (requires { adapter.bind_weight(ctx, w, b); }) return adapter.bind_weight(ctx, w, b);
      missing("bind_weight");
    }
    void for_each_parameter(void* visitor, VisitParameter visit) override {
      adapter.for_each_parameter([&](Param& p) { visit(visitor, p); });
    }
    LinearShape shape() const override { return adapter.shape(); }
    bool reads_input_in_backward() const override { return adapter.reads_input_in_backward(); }
    std::string_view method_name() const override { return A::method; }
    std::uint64_t layer() const override {
      if constexpr (requires { adapter.options().layer; }) return adapter.options().layer;
      return 0;
    }
    std::uint64_t basis_digest() const override {
      if constexpr (requires { adapter.basis_digest(); }) return adapter.basis_digest();
      return 0;
    }

   private:
    using TypedSaved = typename A::Saved;

    static TypedSaved& typed(Saved& saved) {
      if (saved.type != type_id<A>()) {
        saved.held = {new TypedSaved, [](void* held) { delete static_cast<TypedSaved*>(held); }};
        saved.type = type_id<A>();
      }
      auto& held = *static_cast<TypedSaved*>(saved.held.get());
      held.call = saved.call;
      return held;
    }
    // The typed adapters of a group, in memory that is kept from step to step.
    std::span<A* const> typed_group(std::span<AnyAdapter* const> layers) {
      group_.clear();
      for (AnyAdapter* layer : layers) group_.push_back(layer->template get<A>());
      return group_;
    }
    std::vector<A*> group_;

    [[noreturn]] static void missing(std::string_view member) {
      raise<UnsupportedError>("AnyAdapter", std::string(member)
                                                .append(": got method '")
                                                .append(A::method)
                                                .append("', which has none, want a method that offers it"));
    }
  };

  std::unique_ptr<Concept> self_;
};

}  // namespace deltaw
