// The demo: the frozen base, its head alone, LoRA and full fine-tuning on the same shifted task, in one table. `--tune`
// finds the learning rates that it trains with.

#include <cstdio>
#include <iostream>
#include <map>
#include <tuple>

#include "common/program.hpp"
#include "demo/table.hpp"
#include "finetune/run.hpp"

namespace dw = deltaw;
using dw::index_t;
using Json = nlohmann::ordered_json;

namespace {

struct Settings {
  long seeds = 1;
  std::vector<std::string> methods;
  std::string data = examples::default_data_folder;
  std::string out = "build/demo";
  std::string tuned = DELTAW_SOURCE_DIR "/examples/finetune/tuned.json";
  int threads = examples::max_threads();
  bool tune = false, quick = false, quiet = false;
};

constexpr double candidates[] = {3e-3, 7e-3, 1e-2, 3e-2};
constexpr index_t held_out = 5000;  ///< beside those trained on: with fewer, chance decides between neighbours

void add_options(CLI::App& app, Settings& s) {
  app.add_option("--seeds", s.seeds, "Run seeds 0 ... N - 1 and report mean and range")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  app.add_option("--methods", s.methods, "Which methods, separated by commas or spaces [frozen,head,lora,full]");
  app.add_option("--data", s.data, "Folder with the four idx.gz files of Fashion-MNIST")->capture_default_str();
  app.add_option("--out", s.out, "Folder for results.json and the adapters")->capture_default_str();
  app.add_option("--tuned", s.tuned, "File of the learning rates, read, or written by --tune")->capture_default_str();
  app.add_option("--threads", s.threads, "Threads")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_flag("--tune", s.tune,
               "Find each method's learning rate: the best of the same four by the accuracy on 5,000 "
               "training images beside the 2,000 trained on; the test set is not read");
  app.add_flag("--quick", s.quick, "A few steps and test images, to see that all works; the figures mean nothing");
  app.add_flag("--quiet", s.quiet, "No progress");
}

/// "lora,full" or "lora full", in one argument or more, as a list.
std::vector<std::string> split_names(const std::vector<std::string>& arguments, std::vector<std::string> otherwise) {
  std::vector<std::string> names;
  for (const std::string& argument : arguments) {
    std::string name;
    for (const char c : argument + ",") {
      if (c != ',' && c != ' ') {
        name += c;
      } else if (!name.empty()) {
        names.push_back(std::exchange(name, {}));
      }
    }
  }
  return names.empty() ? otherwise : names;
}

/// What the other methods are asked for beside LoRA's rank 4 and alpha 16: about LoRA's number of parameters, or their own
/// defaults.
const std::map<std::string, std::pair<index_t, std::vector<dw::OptionText>>> method_options{
    {"adalora", {6, {{"target_rank", "4"}}}},
    {"block_lora", {8, {{"blocks", "2"}}}},
    {"lora_sb", {16, {{"any_rank", "true"}}}},
    {"lora_xs", {16, {{"any_rank", "true"}}}},
    {"nola", {4, {{"alpha", "16"}, {"k", "256"}, {"l", "256"}}}},
    {"randlora", {16, {{"alpha", "320"}}}},
    {"vera", {96, {{"any_rank", "true"}}}},
};

finetune::Options options_of(const Settings& s, const std::string& method, std::uint64_t seed) {
  finetune::Options o{.method = method, .seed = seed, .data = s.data};
  if (const auto found = method_options.find(method); found != method_options.end())
    std::tie(o.rank, o.method_options) = found->second;
  if (method == "lora") o.dropout = 0.1, o.norms = true;  // docs/data.md says how they were chosen
  if (s.quick) o.steps = 4, o.images = 200;
  return o;
}

Json read_tuned(const Settings& s) {
  std::error_code ignored;
  if (!std::filesystem::exists(s.tuned, ignored)) return Json::object();
  const auto text = dw::io::read_text(s.tuned, 1 << 20);
  dw::io::parse_json(s.tuned, text);
  return Json::parse(text);  // in the order of the file
}

/// As tuned; a method that is not takes LoRA's, which need not suit it.
double chosen_rate(const Settings& s, const Json& tuned, const std::string& method) {
  if (method == "frozen") return finetune::Options{}.learning_rate;
  const auto has = [&](const std::string& name) {
    return tuned.contains("chosen") && tuned["chosen"].contains(name) && tuned["chosen"][name].is_number();
  };
  if (!has(method) && has("lora")) {
    dw::find_method<float, dw::Cpu>(method);  // throws for a name that is none
    return tuned["chosen"]["lora"].get<double>();
  }
  if (!has(method))
    dw::raise_mismatch<dw::OptionError>("demo", "learning rate of '" + method + "'", "none in " + s.tuned,
                                        "one found by `make tune METHODS=" + method + "`");
  return tuned["chosen"][method].get<double>();
}

/// The candidate of the highest mean accuracy over the seeds; of equal ones the smallest.
double best_rate(const Json& runs, const std::string& method) {
  double best = 0, best_sum = -1;
  for (const double rate : candidates) {
    double sum = 0;
    for (const auto& run : runs)
      if (run["method"] == method && run["learning_rate"] == rate) sum += run["held_out_accuracy"].get<double>();
    if (sum > best_sum) best = rate, best_sum = sum;
  }
  return best;
}

/// The runs of one method, all candidates on all seeds; empty after an interrupt.
Json tune_method(const Settings& s, const std::string& method, const examples::LabelledImages& images) {
  Json runs = Json::array();
  for (std::uint64_t seed = 0; std::cmp_less(seed, s.seeds); ++seed)
    for (const double rate : candidates) {
      auto options = options_of(s, method, seed);
      options.learning_rate = rate;
      options.held_out = s.quick ? options.images / 5 : held_out;
      if (!s.quick) options.images += held_out;
      finetune::Run run(options, images);
      if (!run.train(s.quiet)) return {};
      const double accuracy = run.accuracy(images, run.held_out());
      std::printf("%-6s seed %d  learning rate %-6g  %.2f %% of the held-out images\n", method.c_str(),
                  static_cast<int>(seed), rate, 100 * accuracy);
      std::fflush(stdout);
      Json row{{"method", method}, {"seed", seed}, {"learning_rate", rate}, {"held_out_accuracy", accuracy}};
      const nlohmann::json all = options;
      for (const char* name :
           {"rank", "alpha", "dropout", "norms", "steps", "batch", "weight_decay", "images", "held_out"})
        row[name] = all[name];
      runs.push_back(row);
    }
  return runs;
}

int tune(const Settings& s) {
  const auto images = examples::read_fashion_mnist(s.data, "train");
  for (const std::string& method : split_names(s.methods, {"head", "lora", "full"})) {
    const Json found = tune_method(s, method, images);
    if (found.empty()) return examples::exit_interrupted;
    const Json old = read_tuned(s);
    Json runs = Json::array(), chosen = old.value("chosen", Json::object());
    for (const auto& run : old.value("runs", Json::array()))
      if (run["method"] != method) runs.push_back(run);
    runs.insert(runs.end(), found.begin(), found.end());
    chosen[method] = best_rate(found, method);
    const Json tuned{{"what",
                      "Learning rates of the demo: of each method the candidate with the highest accuracy on the "
                      "held-out images, by mean over the seeds. Written by `make tune`."},
                     {"candidates", candidates},
                     {"chosen", chosen},
                     {"runs", runs}};
    dw::io::write_atomically(s.tuned, dw::io::dump_json(s.tuned, tuned, 1) + "\n");
    std::printf("%s: learning rate %g, written to %s\n", method.c_str(), chosen[method].get<double>(), s.tuned.c_str());
  }
  return 0;
}

/// Writes the adapter as PEFT does, reads it back into a fresh model and merges it there: the accuracies must agree.
bool check_round_trip(finetune::Run& run, const std::filesystem::path& folder, const examples::LabelledImages& test,
                      std::span<const index_t> chosen, double accuracy) {
  dw::io::save_peft(run.model().set(), finetune::adapter_name, folder,
                    {.base_model_name_or_path = "deltaw/examples/vit"});
  vit::Vit<float> fresh({}, finetune::rest_of(run.options()));
  auto& ctx = fresh.context();
  vit::load_weights(fresh, run.options().base);
  dw::io::load_peft(ctx, fresh.set(), finetune::adapter_name, folder);
  const auto measure = [&] { return vit::accuracy(fresh, test, chosen, vit::Look::Shifted, [](long) {}); };
  const double unmerged = measure();
  fresh.set().merge(ctx, dw::MergeMode::KeepCopy);
  const double merged = measure();
  // The same values give the same answers; a merged weight is rounded once more, which may turn a tie.
  const bool agree = unmerged == accuracy && std::abs(merged - unmerged) <= 1e-3;
  std::printf("%s: adapter written to %s and read back: %.2f %%; merged into the base: %.2f %%: %s\n",
              run.options().method.c_str(), folder.c_str(), 100 * unmerged, 100 * merged,
              agree ? "they agree" : "they do NOT agree");
  return agree;
}

bool peft_has(const std::string& method) { return method != "frozen" && method != "head" && method != "full"; }

int demo(const Settings& s) {
  const auto methods = split_names(s.methods, {"frozen", "head", "lora", "full"});
  const Json tuned = read_tuned(s);
  for (const std::string& method : methods) {  // before anything takes time
    const double rate = chosen_rate(s, tuned, method);
    if (method != "frozen" && !tuned["chosen"].contains(method))
      std::printf("%s: not tuned yet (make tune METHODS=%s), so with LoRA's learning rate, %g\n", method.c_str(),
                  method.c_str(), rate);
  }
  const auto images = examples::read_fashion_mnist(s.data, "train"),
             test = examples::read_fashion_mnist(s.data, "t10k");
  std::vector<index_t> chosen(static_cast<std::size_t>(s.quick ? 200 : test.count()));
  std::iota(chosen.begin(), chosen.end(), index_t{0});
  dw::io::create_directories(s.out);

  Json rows = Json::array();
  bool agree = true;
  for (std::uint64_t seed = 0; std::cmp_less(seed, s.seeds); ++seed) {
    for (const std::string& method : methods) {
      auto options = options_of(s, method, seed);
      options.learning_rate = chosen_rate(s, tuned, method);
      finetune::Run run(options, images);
      if (!run.train(s.quiet)) return examples::exit_interrupted;
      auto cost = run.cost();
      const double accuracy = run.accuracy(test, chosen, s.quiet);
      if (!finetune::trains(options)) cost = run.cost();
      rows.push_back(finetune::result_row(run, accuracy, cost));
      if (seed != 0 || !peft_has(method)) continue;
      try {
        const auto folder = std::filesystem::path(s.out) / method;
        agree = check_round_trip(run, folder, test, chosen, accuracy) && agree;
      } catch (const dw::UnsupportedError& error) {
        std::printf("%s: not written as PEFT does: %s\n", method.c_str(), error.what());
      }
    }
  }
  const auto results = std::filesystem::path(s.out) / "results.json";
  dw::io::write_atomically(results, dw::io::dump_json(results.string(), rows, 1) + "\n");
  table::print(rows, methods);
  std::printf("rows are in %s\n", results.c_str());
  return agree ? 0 : examples::exit_failed;
}

}  // namespace

int main(int argc, char** argv) {
  Settings settings;
  CLI::App app(
      "Adapts a frozen Vision Transformer to turned and inverted images by several methods and prints what each "
      "reaches on the whole test set, and what it costs.",
      "demo");
  add_options(app, settings);
  return examples::run_program(app, argc, argv, [&] {
    examples::set_threads(settings.threads);
    examples::catch_interrupts();
    if (settings.quick) settings.out += "/quick";
    return settings.tune ? tune(settings) : demo(settings);
  });
}
