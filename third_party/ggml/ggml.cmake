# Adds the pinned ggml to the build: shared libraries ggml-base and ggml, and one loadable module per backend.
#
# The package folder holds the two libraries beside _core, and the backends one folder each:
#   sdengine/libsde-ggml-<version>.so, sdengine/backends/cpu/libggml-cpu*.so, sdengine/backends/vulkan/libggml-vulkan.so, ...
# A build tree has the same layout of backends under <build>/backends; csrc/runtime/backends.cpp loads them.
set(SDENGINE_GGML_DIR "" CACHE PATH "ggml sources to use instead of the pinned download")
option(SDENGINE_CUDA "Build the CUDA backend (needs the CUDA toolkit 12.8 or newer)" OFF)
option(SDENGINE_VULKAN "Build the Vulkan backend (needs libvulkan's headers, glslc and SPIR-V headers)" OFF)
option(SDENGINE_CPU_VARIANTS "Build the CPU backend once per instruction set, for wheels; else for this machine" OFF)
set(SDENGINE_PLUGIN "" CACHE STRING "Install this backend's library alone (\"cuda\", \"vulkan\"), for a plugin wheel")
if(APPLE)
  option(SDENGINE_METAL "Build the Metal backend" ON)
else()
  set(SDENGINE_METAL OFF)
endif()

if(SDENGINE_GGML_DIR)
  set(ggml_source "${SDENGINE_GGML_DIR}")
else()
  set(ggml_source "${CMAKE_BINARY_DIR}/ggml-source")
  execute_process(
    COMMAND "${Python_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/fetch.py" "${ggml_source}"
    RESULT_VARIABLE ggml_fetched)
  if(NOT ggml_fetched EQUAL 0)
    message(FATAL_ERROR "ggml could not be downloaded with pip (see above). Offline? Unpack ggml yourself "
                        "and pass -DSDENGINE_GGML_DIR=<folder>.")
  endif()
endif()

# ggml's own options follow ours, also in a build folder that was configured otherwise before.
set(BUILD_SHARED_LIBS ON)
set(GGML_BACKEND_DL ON CACHE BOOL "" FORCE)
set(GGML_CUDA ${SDENGINE_CUDA} CACHE BOOL "" FORCE)
set(GGML_VULKAN ${SDENGINE_VULKAN} CACHE BOOL "" FORCE)
set(GGML_METAL ${SDENGINE_METAL} CACHE BOOL "" FORCE)
set(GGML_METAL_EMBED_LIBRARY ON CACHE BOOL "" FORCE)
set(GGML_BLAS OFF CACHE BOOL "" FORCE)
set(GGML_CPU_ALL_VARIANTS ${SDENGINE_CPU_VARIANTS} CACHE BOOL "" FORCE)
# ggml refuses GGML_NATIVE for a module on x86, because its check of the processor cannot name what the compiler chose.
# A module for this machine only needs no check: its flag is given below.
set(sdengine_x86_native OFF)
if(SDENGINE_CPU_VARIANTS)
  set(GGML_NATIVE OFF CACHE BOOL "" FORCE)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64|i686)$")
  set(GGML_NATIVE OFF CACHE BOOL "" FORCE)
  if(NOT MSVC)
    set(sdengine_x86_native ON)
    foreach(feature SSE42 AVX AVX2 BMI2 FMA F16C)
      set(GGML_${feature} OFF CACHE BOOL "" FORCE)
    endforeach()
  endif()
endif()
set(GGML_CUDA_NCCL OFF CACHE BOOL "" FORCE)  # one network runs on one device at a time
set(GGML_LLAMAFILE ON CACHE BOOL "tinyBLAS matrix products: about twice as fast as plain ggml")
# Our threads live as long as a pipeline (ggml's own pool); libgomp would add a second, process-wide pool.
set(GGML_OPENMP OFF CACHE BOOL "")
set(GGML_BUILD_TESTS OFF CACHE BOOL "")
set(GGML_BUILD_EXAMPLES OFF CACHE BOOL "")
if(SDENGINE_CUDA AND NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  # Machine code from Turing to Blackwell. Hopper's as PTX too, which the driver compiles for cards that are not named:
  # ggml makes 120a of 120, and PTX of such an architecture is for that one alone.
  set(CMAKE_CUDA_ARCHITECTURES "75-real;80-real;86-real;89-real;90;120-real")
endif()
set(GGML_AVAILABLE_BACKENDS "" CACHE INTERNAL "")
add_subdirectory("${ggml_source}" "${CMAKE_BINARY_DIR}/ggml" EXCLUDE_FROM_ALL)

if(APPLE)
  set(sdengine_origin "@loader_path")
else()
  set(sdengine_origin "$ORIGIN")
endif()

# The names carry our prefix and ggml's version: a process may hold another program's ggml too (llama-cpp-python's),
# and loaders take a library that is already there for one of the same name. It also keeps a plugin that
# was built for another ggml from being loaded.
get_target_property(ggml_version ggml VERSION)
set_property(TARGET ggml PROPERTY PUBLIC_HEADER)
foreach(library ggml-base ggml)
  set_property(TARGET ${library} PROPERTY VERSION)
  set_property(TARGET ${library} PROPERTY SOVERSION)
  set_target_properties(${library} PROPERTIES
    OUTPUT_NAME "sde-${library}-${ggml_version}"
    INSTALL_RPATH "${sdengine_origin}")
endforeach()

# Below the package, or in a plugin wheel below the namespace package `sdengine_backends`. Either way NVIDIA's libraries
# are found where its wheels put them; a build for this machine also finds those that it was linked with.
if(SDENGINE_PLUGIN)
  set(sdengine_root "sdengine_backends")
  set(sdengine_rpath "${sdengine_origin}/../../sdengine;${sdengine_origin}/../../nvidia/cu13/lib")
else()
  set(sdengine_root "sdengine/backends")
  set(sdengine_rpath "${sdengine_origin}/../..;${sdengine_origin}/../../../nvidia/cu13/lib")
endif()
foreach(backend IN LISTS GGML_AVAILABLE_BACKENDS)
  string(REGEX REPLACE "^ggml-([a-z]+).*$" "\\1" kind "${backend}")
  set_property(TARGET ${backend} PROPERTY VERSION)
  set_property(TARGET ${backend} PROPERTY SOVERSION)
  set_target_properties(${backend} PROPERTIES
    LIBRARY_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/backends/${kind}"
    INSTALL_RPATH "${sdengine_rpath}")
  if(kind STREQUAL "cuda" AND NOT SDENGINE_PLUGIN)
    set_target_properties(${backend} PROPERTIES INSTALL_RPATH_USE_LINK_PATH ON)
  endif()
  if(NOT SDENGINE_PLUGIN OR SDENGINE_PLUGIN STREQUAL kind)
    install(TARGETS ${backend} LIBRARY DESTINATION "${sdengine_root}/${kind}")
  endif()
endforeach()
if(NOT MSVC)
  # What its abort callback throws passes through this one file (csrc/runtime/device.cpp).
  set_property(SOURCE "${ggml_source}/src/ggml.c" TARGET_DIRECTORY ggml-base APPEND PROPERTY
    COMPILE_OPTIONS -fexceptions)
endif()
if(sdengine_x86_native AND TARGET ggml-cpu)
  target_compile_options(ggml-cpu PRIVATE -march=native)
endif()
if(TARGET ggml-vulkan)
  include("${CMAKE_CURRENT_LIST_DIR}/vulkan_headers.cmake")
endif()
