<?php
// Prints what is in the namespace Tagsweep as JSON: of the loaded extension, or of a stub file.

declare(strict_types=1);

if (isset($argv[1])) {
    require $argv[1];
}
$names = array_filter(array_merge(get_declared_interfaces(), get_declared_classes()), fn ($name) => str_starts_with($name, 'Tagsweep\\'));
sort($names);
$all = [];
foreach ($names as $name) {
    $class = new ReflectionClass($name);
    $methods = [];
    foreach ($class->getMethods() as $method) {
        if ($method->getDeclaringClass()->getName() !== $name) {
            continue;
        }
        $parameters = array_map(fn (ReflectionParameter $p) => [
            $p->getName(), types($p->getType()), $p->isOptional(),
            $p->isDefaultValueAvailable() ? var_export($p->getDefaultValue(), true) : null,
            array_map(fn ($a) => $a->getName(), $p->getAttributes()),
        ], $method->getParameters());
        // PHP keeps no return type of a constructor; "static" and the class are one promise.
        $methods[$method->getName()] = [$parameters, types($method->getReturnType()), $method->isStatic()];
    }
    ksort($methods);
    $properties = array_map(fn ($p) => $p->getName(), $class->getProperties(ReflectionProperty::IS_PUBLIC));
    sort($properties);
    $interfaces = array_diff($class->getInterfaceNames(), ['Stringable', 'Throwable']);
    sort($interfaces);
    $all[$name] = [
        'parent' => $class->getParentClass() ? $class->getParentClass()->getName() : null,
        'interfaces' => $interfaces, 'interface' => $class->isInterface(), 'final' => $class->isFinal(),
        'methods' => $methods, 'properties' => $properties,
    ];
}
echo json_encode($all, JSON_PRETTY_PRINT), "\n";

function types(?ReflectionType $type): ?string
{
    if ($type === null) {
        return null;
    }
    $names = explode('|', ltrim((string) $type, '?'));
    if ($type->allowsNull() && !in_array('null', $names, true) && (string) $type !== 'mixed') {
        $names[] = 'null';
    }
    sort($names);

    return implode('|', $names);
}
