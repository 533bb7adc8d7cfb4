#include "networks/denoisers/first_block.h"

#include <string>

#include "base/error.h"

namespace sde::networks {
namespace {

// The input `name`, which has the shape of `like`.
nn::Tensor input_like(Graph& graph, const InputShapes& shapes, const std::string& name,
                      const nn::Tensor& like) {
    const Shape& shape = required(shapes, name, like.rank());
    if (!(shape == like.shape()))
        throw Error(ErrorKind::Parameter, "the input '" + name + "' has shape " + shape.text() +
                                              "; the tokens here are " + like.shape().text());
    return nn::input(graph, name, shape);
}

nn::Tensor difference(const nn::Tensor& a, const nn::Tensor& b) {
    return nn::add(a, nn::scale(b, -1.0f));
}

}  // namespace

FirstBlock::FirstBlock(Graph& graph, const InputShapes& shapes, const Options& options,
                       int64_t start, int64_t count)
    : graph_(graph),
      shapes_(shapes),
      part_(part(options, Reuse::FirstBlock)),
      start_(start),
      count_(count) {}

void FirstBlock::cut(const nn::Tensor& before, const std::vector<nn::Tensor*>& streams) {
    if (part_ == Part::Whole) return;
    if (part_ == Part::First)
        nn::output("change", difference(picture(*streams.front()), picture(before)));
    for (size_t i = 0; i < streams.size(); ++i) {
        const std::string name = "hidden_" + std::to_string(i);
        if (part_ == Part::First)
            nn::output(name, *streams[i]);
        else
            *streams[i] = input_like(graph_, shapes_, name, *streams[i]);
    }
    hidden_ = picture(*streams.front());
}

nn::Tensor FirstBlock::finished(const nn::Tensor& x) const {
    if (part_ == Part::Last)
        return nn::add(hidden_, input_like(graph_, shapes_, "residual", hidden_));
    if (part_ == Part::Rest) nn::output("residual", difference(x, hidden_));
    return x;
}

}  // namespace sde::networks
